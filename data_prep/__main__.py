"""python -m data_prep NAME ...: converters and checks of raw datasets.

A command is a module of this package with a `main(argv)` (or a folder with one in `generate.py`): nothing to
register.
"""

import ast
import importlib
import pkgutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import data_prep
from data_prep.errors import InputError


def find_commands() -> dict[str, tuple[str, str]]:
    """Command → its module and the first line of its docstring, from the sources: imports take seconds."""
    commands = {}
    for module in pkgutil.iter_modules(data_prep.__path__):
        if module.name == "__main__":
            continue
        folder = Path(data_prep.__path__[0])
        file = folder / module.name / "generate.py" if module.ispkg else folder / f"{module.name}.py"
        if not file.is_file():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = f"data_prep.{module.name}.generate" if module.ispkg else f"data_prep.{module.name}"
            commands[module.name] = (name, (ast.get_docstring(tree) or "").partition("\n")[0])
    return commands


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    commands = find_commands()
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in commands:
        if argv and argv[0] not in ("-h", "--help"):
            print(
                f"error: expected one of the commands {', '.join(commands)}; found {argv[0]!r}.",
                file=sys.stderr,
            )
        lines = [f"  {name:<10} {about}" for name, (_, about) in commands.items()]
        print("\n".join(["usage: python -m data_prep NAME ...   (NAME --help says more)", *lines]))
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    # A scheduler's SIGTERM is handled like Ctrl-C: what is whole stays, what is half goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return importlib.import_module(commands[argv[0]][0]).main(argv[1:]) or 0
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        # Only preparing data needs these; training runs where they are not installed.
        print(
            f"error: expected the package {error.name!r}, which {argv[0]} needs, found it not installed. "
            "Install what preparing data needs: `make env`, or `pip install -e '.[prep]'`.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted. Run the same command again to continue.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
