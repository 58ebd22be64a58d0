"""Where a benchmark's report goes: files that end in .md or .json, each there whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from placerec_jax.errors import ConfigError


def check_outputs(names: Sequence[str]) -> list[Path]:
    """The paths of `--out`; ConfigError for another ending, before anything is measured."""
    paths = [Path(name) for name in names]
    for path in paths:
        if path.suffix not in (".md", ".json"):
            raise ConfigError(f"--out={path}: expected names that end in .md or .json")
    return paths


def write_outputs(paths: Sequence[Path], text: dict[str, str]) -> None:
    """Writes `text[ending]` to every path."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = path.with_name(f"{path.name}.tmp")
        incomplete.write_text(text[path.suffix])
        incomplete.replace(path)
