"""The first-level submodules of a model as functions, with the inputs that the model gives them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class Call:
    """One submodule's call: `function(variables, inputs)`, pure, gives `output`."""

    function: Callable[[Any, Any], Any]
    variables: dict[str, Any]
    inputs: list[jax.Array]
    output: Any


def submodule_calls(
    model: nn.Module, variables: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, Call]:
    """{name: call} of every first-level submodule in one evaluation pass over `batch`, in order of use."""
    functions: dict[str, Callable[[Any, Any], Any]] = {}

    def forward(variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, tuple[Any, Any]]:
        recorded = {}

        def record(run: Callable, arguments: tuple, keywords: dict, context: Any) -> Any:
            output = run(*arguments, **keywords)
            module = context.module
            if len(module.path) == 1 and context.method_name == "__call__":
                leaves, structure = jax.tree.flatten((arguments, keywords))
                functions[module.name] = _function(module, leaves, structure)
                recorded[module.name] = ([leaf for leaf in leaves if isinstance(leaf, jax.Array)], output)
            return output

        with nn.intercept_methods(record):
            model.apply(variables, batch, train=False)
        return recorded

    recorded = jax.jit(forward)(variables, batch)
    own = {
        name: {collection: tree[name] for collection, tree in variables.items() if name in tree}
        for name in functions
    }
    return {name: Call(functions[name], own[name], *recorded[name]) for name in functions}


def _function(module: nn.Module, leaves: list[Any], structure: Any) -> Callable[[Any, Any], Any]:
    """The module's call as a function of (variables, the arrays among `leaves`); the rest stays as it was."""
    alone = module.clone(parent=None, name=None)
    settings = [None if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]

    def function(variables: Any, inputs: Any) -> Any:
        arrays = iter(inputs)
        filled = [
            next(arrays) if array else setting for array, setting in zip(is_array, settings, strict=True)
        ]
        arguments, keywords = jax.tree.unflatten(structure, filled)
        return alone.apply(variables, *arguments, **keywords)

    return function
