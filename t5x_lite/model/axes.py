"""Logical axis names and the rules that turn them into mesh axes.

The model names the axes of its arrays (`embed`, `heads`, ...); an ordered list of rules, which is
configuration, says over which mesh axes a name is laid out. The model itself never mentions a mesh.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import PartitionSpec

Rule = tuple[str, str | Sequence[str] | None]
Axes = tuple[str | None, ...]

_rules: contextvars.ContextVar[tuple[Rule, ...]] = contextvars.ContextVar("axis_rules", default=())


@contextlib.contextmanager
def axis_rules(rules: Sequence[Rule]) -> Iterator[None]:
    """Makes `constrain` follow these rules inside the block.

    The rules are read while a function is traced and are no part of jit's cache key: use one list with one
    jitted function.
    """
    token = _rules.set(tuple(rules))
    try:
        yield
    finally:
        _rules.reset(token)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Lays `x` out over the mesh of `jax.set_mesh` by the rules in force; without either, returns `x`."""
    rules = _rules.get()
    mesh = jax.sharding.get_abstract_mesh()
    if not rules or mesh.empty:
        return x
    spec = logical_to_spec(logical_axes, rules, dict(mesh.shape), x.shape)
    return jax.lax.with_sharding_constraint(x, spec)


def logical_to_spec(
    logical_axes: Sequence[str | None],
    rules: Sequence[Rule],
    mesh_axis_sizes: Mapping[str, int],
    shape: Sequence[int],
) -> PartitionSpec:
    """The layout of one array: each rule in turn, where its mesh axes are free and divide the dimension.

    Several rules may name one logical axis; a later one is the fallback of an earlier one that could not be
    taken, and a rule to None ends the search with that dimension replicated. Mesh axes of size 1, or absent,
    are left out.
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"{len(logical_axes)} logical axes {tuple(logical_axes)} for an array of shape {tuple(shape)}")
    chosen: dict[int, tuple[str, ...]] = {}
    used: set[str] = set()
    for name, target in rules:
        mesh_axes = _present(target, mesh_axis_sizes)
        for dim, logical in enumerate(logical_axes):
            if logical != name or dim in chosen:
                continue
            if target is None:
                chosen[dim] = ()
            elif mesh_axes and used.isdisjoint(mesh_axes) and _divides(mesh_axes, mesh_axis_sizes, shape[dim]):
                chosen[dim] = mesh_axes
                used.update(mesh_axes)
    entries = [_entry(chosen.get(dim, ())) for dim in range(len(shape))]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _present(target: str | Sequence[str] | None, sizes: Mapping[str, int]) -> tuple[str, ...]:
    names = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    return tuple(name for name in names if sizes.get(name, 1) > 1)


def _divides(mesh_axes: tuple[str, ...], sizes: Mapping[str, int], dimension: int) -> bool:
    return dimension % math.prod(sizes[name] for name in mesh_axes) == 0


def _entry(mesh_axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None
