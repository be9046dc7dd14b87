"""Names of parameters, 'encoder/layers_0/mlp/wo/kernel', for the leaves of nested dicts and back."""

from collections.abc import Mapping
from typing import Any

import jax


def name_of(path: tuple) -> str:
    """The name of a path that JAX gives a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
    """Leaves by name, in tree order."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts whose leaves have these names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
