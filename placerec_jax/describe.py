"""Says what a configuration's model is made of and what it costs; nothing is computed and no data is read.

    python -m placerec_jax.describe --config=configs/maplocnet.py:nuscenes [--batch=8] [--json] [--parameters]

One row per component, that is per first-level submodule of the method's model; what the model does outside
of its submodules is listed under the method that does it. Costs are those of one forward pass at evaluation;
see `placerec_jax.training.cost` for the conventions.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from absl import app, flags
from clu import parameter_overview
from ml_collections import config_flags

from placerec_jax import methods
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.training.cost import Cost, function_cost


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of the model: its parameters, the cost of one pass, the shapes of what it returns."""

    name: str
    parameters: int
    parameter_bytes: int
    cost: Cost
    output: Any  # see `_shape_lists`; None outside of submodules


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` found; `unknown` names the primitives with no known cost."""

    config: str
    batch: int
    components: tuple[Component, ...]
    unknown: tuple[str, ...]

    def total(self) -> Component:
        """The sum over the components."""
        return Component(
            "total",
            sum(c.parameters for c in self.components),
            sum(c.parameter_bytes for c in self.components),
            sum((c.cost for c in self.components), Cost()),
            None,
        )


def abstract_model(cfg: ml_collections.ConfigDict, batch: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(model, abstract batch, abstract variables) of `cfg`, from `method.features` alone."""
    method = methods.load(cfg.method)
    model = method.model(cfg)
    inputs = {
        name: jax.ShapeDtypeStruct((batch, *feature.shape), feature.dtype)
        for name, feature in method.features(cfg).items()
    }
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), inputs)
    return model, inputs, variables


def describe(cfg: ml_collections.ConfigDict, batch: int = 1) -> Description:
    """Parameters, costs and shapes of the model of `cfg`, one row per component."""
    if batch < 1:
        raise ConfigError(f"--batch={batch}: expected at least one example")
    model, inputs, variables = abstract_model(cfg, batch)
    found = function_cost(lambda v, x: model.apply(v, x, train=False), variables, inputs)
    costs = found.by_component(root=type(model).__name__)
    outputs = _component_outputs(model, variables, inputs)
    params = variables["params"]
    components = []
    for name in [*costs, *(name for name in params if name not in costs)]:
        leaves = jax.tree.leaves(params.get(name, {}))
        components.append(
            Component(
                name,
                sum(leaf.size for leaf in leaves),
                sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
                costs.get(name, Cost()),
                _shape_lists(outputs[name]) if name in outputs else None,
            )
        )
    return Description(cfg.name, batch, tuple(components), found.unknown)


def _component_outputs(model: Any, variables: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """{component: what its `__call__` returned} for the first-level submodules."""

    def run(v: Any, x: Any) -> Any:
        _, state = model.apply(
            v,
            x,
            train=False,
            capture_intermediates=lambda module, method: len(module.path) == 1 and method == "__call__",
            mutable=["intermediates"],
        )
        return state["intermediates"]

    captured = jax.eval_shape(run, variables, inputs)
    return {name: calls["__call__"][0] for name, calls in captured.items()}


def _shape_lists(output: Any) -> Any:
    """What JSON can hold of a pytree of arrays: dictionaries and lists of shapes (integers); no None."""
    if hasattr(output, "_asdict"):  # a named tuple
        output = output._asdict()
    if isinstance(output, Mapping):
        return {name: _shape_lists(value) for name, value in output.items() if value is not None}
    if isinstance(output, list | tuple):
        return [_shape_lists(value) for value in output if value is not None]
    return list(output.shape)


def as_json(description: Description) -> dict[str, Any]:
    """A plain dictionary: config, batch, components, total, unknown."""

    def row(component: Component) -> dict[str, Any]:
        return {
            "name": component.name,
            "parameters": component.parameters,
            "parameter_bytes": component.parameter_bytes,
            **dataclasses.asdict(component.cost),
            "output": component.output,
        }

    return {
        "config": description.config,
        "batch": description.batch,
        "components": [row(component) for component in description.components],
        "total": row(description.total()),
        "unknown": list(description.unknown),
    }


def as_table(description: Description) -> str:
    """The description as aligned text."""
    header = ("component", "params", "GMAC", "GFLOP", "activations MB", "moved MB", "output")
    rows = [header]
    for component in (*description.components, description.total()):
        cost = component.cost
        rows.append(
            (
                component.name,
                f"{component.parameters:,}",
                f"{cost.macs / 1e9:.3f}",
                f"{cost.flops / 1e9:.3f}",
                f"{cost.activation_bytes / 1e6:.1f}",
                f"{cost.moved_bytes / 1e6:.1f}",
                _shapes_text(component.output),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    rule = "-" * max(len(line) for line in lines)
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    title = f"{description.config}: one forward pass, batch {description.batch}"
    notes = [f"not counted: {name}" for name in description.unknown]
    return "\n".join([title, "", *lines, *notes])


def _shapes_text(output: Any) -> str:
    """Pytree of shapes to text, as 'fine 1x128x64x32, coarse 1x64x32x64'."""
    if output is None:
        return ""
    leaves = jax.tree_util.tree_leaves_with_path(output, is_leaf=_is_shape)
    texts = []
    for path, shape in leaves:
        name = "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        texts.append(f"{name} {'x'.join(map(str, shape))}".strip())
    return ", ".join(texts)


def _is_shape(node: Any) -> bool:
    return isinstance(node, list) and all(isinstance(size, int) for size in node)


def _main(_: Any) -> None:
    values = flags.FLAGS
    try:
        description = describe(values.config, values.batch)
    except UserError as error:
        sys.exit(f"error: {error}")
    if values.json:
        print(json.dumps(as_json(description), indent=2))
        return
    if values.parameters:
        _, _, variables = abstract_model(values.config, values.batch)
        print(parameter_overview.get_parameter_overview(variables["params"], include_stats=False))
    print(as_table(description))


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", None, "Config file, as configs/maplocnet.py:nuscenes.")
    flags.DEFINE_integer("batch", 1, "Examples in the pass.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    flags.DEFINE_bool("parameters", False, "List every parameter above the table.")
    flags.mark_flag_as_required("config")
    app.run(_main)


if __name__ == "__main__":
    main()
