"""The rules that keep the project one that can be read: what may import what, and what an import may do.

Everything here runs over the folders: a new method, module or config is held to the rules by being there.
"""

import ast
import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from placerec_jax import methods

CHECKOUT = Path(__file__).resolve().parent.parent

# Lower stands further down. Imports go down, or stay in their own folder.
LAYERS = {
    "entry point": 6,
    "training": 5,
    "evaluation": 5,
    "methods": 4,
    "data": 3,
    "modules": 2,
    "ops": 1,
    "contract": 0,  # placerec_jax.methods itself: what a method is, named by all who use one
    "errors": -1,
}


def source_files() -> list[Path]:
    """Every file of the checkout that git tracks or would track."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout: cannot tell the project's files from the rest")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [CHECKOUT / name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]


def python_modules(package: str) -> dict[str, Path]:
    """Dotted name → file of every module below `package`."""
    modules = {}
    for path in sorted((CHECKOUT / package).rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_by(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """Dotted names that one statement imports; a member counts as its module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; say the whole name"
        for alias in node.names:
            member = f"{node.module}.{alias.name}"
            yield member if member in known else node.module


def imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Dotted names that `path` imports anywhere in it, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from imported_by(node, known)


def layer(module: str) -> str:
    parts = module.split(".")
    if module == "placerec_jax.methods":
        return "contract"
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "entry point"


# --- What may import what -----------------------------------------------------------------------------------


def test_imports_inside_the_library_go_down() -> None:
    known = python_modules("placerec_jax")
    upward = []
    for module, path in known.items():
        if module == "placerec_jax":
            continue
        for imported in imports_of(path, known):
            if not imported.startswith("placerec_jax."):
                continue
            same_folder = layer(module) == layer(imported) != "entry point"
            if not same_folder and LAYERS[layer(imported)] >= LAYERS[layer(module)]:
                # Training watches evaluation figures, evaluation restores checkpoints: they are one level.
                if {layer(module), layer(imported)} == {"training", "evaluation"}:
                    continue
                upward.append(f"{module} ({layer(module)}) imports {imported} ({layer(imported)})")
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("package", ["placerec_jax", "data_prep"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    """Among what runs at import: a function may import late, types may name their users."""
    known = python_modules(package)
    graph = {}
    for module, path in known.items():
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        graph[module] = {name for node in statements for name in imported_by(node, known)} & set(known)
        graph[module].discard(module)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_data_preparation_and_library_meet_only_in_ops() -> None:
    library, preparation = python_modules("placerec_jax"), python_modules("data_prep")
    for module, path in preparation.items():
        for imported in imports_of(path, library):
            if imported.split(".")[0] == "placerec_jax":
                assert imported.startswith("placerec_jax.ops"), f"{module} imports {imported}"
    for module, path in library.items():
        for imported in imports_of(path, preparation):
            assert imported.split(".")[0] != "data_prep", f"{module} imports {imported}"


def test_only_data_preparation_imports_tensorflow() -> None:
    for module, path in {**python_modules("placerec_jax"), **python_modules("configs")}.items():
        for imported in imports_of(path, {}):
            assert imported.split(".")[0] != "tensorflow", f"{module} imports {imported}"


def test_configs_import_only_configs() -> None:
    """A config is data: reading one needs neither JAX nor the library."""
    for module, path in python_modules("configs").items():
        for imported in imports_of(path, {}):
            assert imported.split(".")[0] in {"configs", "ml_collections"}, f"{module} imports {imported}"


# --- What an import may do ----------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, json, sys
import chex, flax.linen, grain, jax, optax, orbax.checkpoint, tensorflow_datasets  # their doings are not ours
before = dict(jax.config.values)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
from jax._src import xla_bridge
print(json.dumps({
    "changed": [key for key, value in jax.config.values.items() if before.get(key) != value],
    "tensorflow": "tensorflow" in sys.modules,
    "backend": xla_bridge.backends_are_initialized(),
}))
"""


def test_importing_every_module_does_no_work(run_command, tmp_path: Path) -> None:
    names = json.dumps([*python_modules("placerec_jax"), *python_modules("configs")])
    done = run_command("-c", IMPORT_ALL, names, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == {"changed": [], "tensorflow": False, "backend": False}
    assert not list(tmp_path.iterdir()), "importing wrote files"


def test_importing_data_preparation_does_no_work(run_command, tmp_path: Path) -> None:
    names = json.dumps([name for name in python_modules("data_prep") if not name.endswith("__main__")])
    script = (
        "import importlib, json, sys; [importlib.import_module(n) for n in json.loads(sys.argv[1])];"
        "bad = {'torch', 'flax', 'optax'} & set(sys.modules); assert not bad, bad"
    )
    run_command("-c", script, names, cwd=tmp_path)
    assert not list(tmp_path.iterdir()), "importing wrote files"


@pytest.mark.parametrize("module", ["placerec_jax", "placerec_jax.ops.grid"])
def test_package_and_grid_import_without_jax(module: str, run_command) -> None:
    run_command("-c", f"import sys, {module}; assert 'jax' not in sys.modules")


# --- Every method and every config --------------------------------------------------------------------------


def method_names() -> list[str]:
    return [name.split(".")[-1] for name in python_modules("placerec_jax/methods") if name.count(".") == 2]


def config_args(method: str) -> list[str]:
    """The presets of configs/<method>.py, as its own error for an unknown one lists them."""
    module = importlib.import_module(f"configs.{method}")
    with pytest.raises(ValueError, match="no-such-preset") as error:
        module.get_config("no-such-preset")
    listed = re.search(r"\[.*\]", str(error.value))
    assert listed, f"configs/{method}.py: the error for an unknown preset lists no known ones: {error.value}"
    return ast.literal_eval(listed.group())


def every_recipe() -> list[tuple[str, str]]:
    return [(method, arg) for method in method_names() for arg in config_args(method)]


def get_config(method: str, arg: str) -> ml_collections.ConfigDict:
    return importlib.import_module(f"configs.{method}").get_config(arg)


def test_there_are_methods_and_each_has_a_config() -> None:
    assert method_names()
    for method in method_names():
        assert (CHECKOUT / "configs" / f"{method}.py").is_file(), f"configs/{method}.py is missing"


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no_such_method.*maplocnet"):
        methods.load("no_such_method")


@pytest.mark.parametrize("method", method_names())
def test_method_implements_the_contract(method: str) -> None:
    module = methods.load(method)
    for name in ("features", "model", "encoders", "loss", "predict", "source"):
        assert callable(getattr(module, name, None)), f"placerec_jax.methods.{method} lacks {name}"
    assert module.__doc__, f"placerec_jax.methods.{method}: say which paper"


@pytest.mark.parametrize("method", method_names())
def test_bare_config_is_the_cpu_preset_and_its_header_says_how_to_run_it(method: str) -> None:
    module = importlib.import_module(f"configs.{method}")
    assert module.get_config().to_json() == module.get_config("cpu").to_json()
    assert f"--config=configs/{method}.py" in module.__doc__
    assert "tiny" in config_args(method)


@pytest.mark.parametrize(("method", "arg"), every_recipe())
def test_config_loads_locks_and_is_deterministic(method: str, arg: str) -> None:
    config = get_config(method, arg).lock()
    assert config.to_json() == get_config(method, arg).to_json()
    assert config.method == method
    assert config.name == f"{method}-{arg}"
    assert config.workdir == f"runs/{method}-{arg}"
    with pytest.raises(AttributeError):
        config.no_such_setting = 1
    json.dumps(config.to_dict())  # settings are plain values: they travel in checkpoints and reports


@pytest.mark.parametrize(("method", "arg"), every_recipe())
def test_method_is_defined_by_its_features_alone(method: str, arg: str) -> None:
    """Shapes of one example suffice to initialise, to take a loss and to predict; no data, no computation."""
    cfg = get_config(method, arg).lock()
    module = methods.load(method)
    features = module.features(cfg)
    for name, feature in features.items():
        assert isinstance(feature, jax.ShapeDtypeStruct), name
        assert all(isinstance(size, int) and size > 0 for size in feature.shape), (name, feature)

    batch_size = 3  # as few as losses take that compare pairs with each other
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *feature.shape), feature.dtype)
        for name, feature in features.items()
    }
    network = module.model(cfg)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def everything(key: jax.Array, batch: dict) -> tuple:
        variables = network.init({"params": key, "dropout": key}, batch, train=False)
        representations = network.apply(variables, batch, train=False)
        return (
            variables,
            representations,
            module.loss(cfg, representations, batch),
            module.predict(cfg, representations, batch),
        )

    variables, representations, losses, predictions = jax.eval_shape(everything, key, batch)

    assert set(variables) <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert set(representations) == set(module.encoders(cfg))  # shapes come sorted, so the order is seen below
    known = set(module.features(cfg))
    for name, encoder in module.encoders(cfg).items():
        assert known.issuperset(encoder.inputs), name
        known.add(name)
    assert set(losses) == set(cfg.loss)
    for term, (total, weight) in losses.items():
        for part in (total, weight):
            assert (jnp.shape(part), jnp.result_type(part)) == ((), jnp.float32), term
    for name, prediction in predictions.items():
        assert prediction.shape[0] == batch_size, (name, prediction.shape)


# --- The text of the repository -----------------------------------------------------------------------------


def test_no_drawer_modules() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py"}
    assert [str(path) for path in source_files() if path.name in drawers] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(r"(?<![\w.$}/])/(?:work|root|home|Users|opt|tmp/w)/[\w.-]+")
    found = []
    for path in source_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(CHECKOUT)}: {match.group()}" for match in place.finditer(text)]
    assert not found, "\n".join(found)


def test_runtime_dependencies_are_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (CHECKOUT / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                assert re.match(r"[A-Za-z0-9_.-]+(\[\w+\])?==[\w.]+( ;.*)?$", line), f"{name}: {line}"
