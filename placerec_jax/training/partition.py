"""A tree in two parts of the same structure, each with None where the other has the leaf."""

from collections.abc import Callable
from typing import Any

import jax


def split_tree(tree: Any, chosen: Callable[[tuple[Any, ...], Any], bool]) -> tuple[Any, Any]:
    """(the leaves with `chosen(path, leaf)`, the rest); JAX and optax take None for no leaf at all."""
    picked = jax.tree_util.tree_map_with_path(chosen, tree)
    return (
        jax.tree.map(lambda leaf, mine: leaf if mine else None, tree, picked),
        jax.tree.map(lambda leaf, mine: None if mine else leaf, tree, picked),
    )


def join_tree(first: Any, second: Any) -> Any:
    """The tree that `split_tree` gave these parts of."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
