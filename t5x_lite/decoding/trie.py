"""A catalogue of token sequences as arrays that a search on the device walks, and who may have which of them.

Sequences are sorted; the ones below a node of the trie are then a range, and a count of them is a difference.
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from t5x_lite.decoding.buckets import power_of_two
from t5x_lite.decoding.sampling import PAD_ID
from t5x_lite.errors import UserError


class Level(NamedTuple):
    """The trie's nodes at one token position, in the order of the sequences; P nodes are one position before.

    Children of node p are the nodes from `first_child[p]` up to `first_child[p + 1]`; above the first level stands one
    node, the root. The sorted sequences below node n are those from `first_leaf[n]` up to `last_leaf[n]`, and where
    `ends[n]`, the first of them ends there. Unused places at the end have no children and no sequences.
    """

    first_child: Int[Array, "P+1"]
    token: Int[Array, "M"]
    first_leaf: Int[Array, "M"]
    last_leaf: Int[Array, "M"]
    ends: Bool[Array, "M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """What `build_trie` makes: hand it to a jitted function as an argument, put on its devices once.

    Array sizes and `branching`, the most children that a node has at each level, are rounded up to 2^k or 1.5 * 2^k,
    and compiled programs depend on nothing else but `ending`: whether any sequence ends at each level. `items` are the
    caller's numbers of the sorted sequences, `leaves` the other way round.
    """

    levels: tuple[Level, ...]
    items: Int[Array, "N"]
    leaves: Int[Array, "N"]
    size: Int[Array, ""]
    branching: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    ending: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        return self.items.shape[0]

    def sequences(self, leaves: Int[Array, "R"]) -> Int[Array, "R C"]:
        """The sorted sequences of these numbers, padded by zeros; all zeros from `size` on."""

        def tokens(level: Level) -> Int[Array, "R"]:
            node = jnp.maximum(jnp.searchsorted(level.first_leaf, leaves, side="right") - 1, 0)
            inside = (level.first_leaf[node] <= leaves) & (leaves < level.last_leaf[node])
            return jnp.where(inside, level.token[node], PAD_ID)

        return jnp.stack([tokens(level) for level in self.levels], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restriction:
    """Which sequences each request of a batch may get; `restrict` makes it.

    `denied` are sorted leaves, filled up with the trie's capacity. Of filter f, `allowed_before[f, n]` of the leaves
    before n are allowed; requests name theirs in `filters`, so that those with one filter share it. A denied leaf is
    an allowed one.
    """

    denied: Int[Array, "B D"]
    filters: Int[Array, "B"] | None = None
    allowed_before: Int[Array, "F N+1"] | None = None

    def live(self, first: Int[Array, "B *K"], last: Int[Array, "B *K"]) -> Int[Array, "B *K"]:
        """How many of the leaves from `first` up to `last` a request may have."""
        search = jax.vmap(functools.partial(jnp.searchsorted, method="scan_unrolled"))  # fast on CPU, no loop on GPU
        count = last - first
        if self.allowed_before is not None:
            filters = self.filters.reshape(-1, *(1,) * (first.ndim - 1))
            count = self.allowed_before[filters, last] - self.allowed_before[filters, first]
        return count - (search(self.denied, last) - search(self.denied, first))


def build_trie(sequences: Int[np.ndarray, "N C"] | Sequence[Sequence[int]], *, like: Trie | None = None) -> Trie:
    """The trie of distinct token sequences: rows padded by zeros, or lists. An EOS is a token like others.

    With `like`, arrays are at least as large as that trie's: a catalogue that grows from it, or shrinks, within its
    capacities then runs in the programs compiled for it. Raises UserError for what is no catalogue.
    """
    table = _table(sequences)
    if like is not None:
        table = np.pad(table, ((0, 0), (0, max(len(like.levels) - table.shape[1], 0))))
    order = np.lexsort(table.T[::-1])
    table = table[order]
    same = (table[1:] == table[:-1]).all(axis=1)
    if same.any():
        where = int(np.argmax(same))
        raise UserError(f"sequences {order[where]} and {order[where + 1]} are the same: {_shown(table[where])}")

    size, depth = table.shape
    lengths = (table != PAD_ID).sum(axis=1)
    capacity = _capacity(size, like and like.capacity)
    changed = np.zeros(size, bool)
    changed[0] = True
    parents = np.zeros(1, np.int64)
    levels, branching, ending = [], [], []
    for t in range(depth):
        old = like.levels[t] if like and t < len(like.levels) else None
        changed[1:] |= table[1:, t] != table[:-1, t]
        groups = np.flatnonzero(changed)
        is_node = table[groups, t] != PAD_ID  # what is no node ended before, and is alone in its group
        first, last = groups[is_node], np.append(groups[1:], size)[is_node]
        ends = lengths[first] == t + 1
        nodes = _capacity(len(first), old and len(old.token))
        above = 1 if t == 0 else len(levels[-1].token)
        children = np.append(np.searchsorted(first, parents), len(first))
        levels.append(
            Level(
                first_child=_filled(children, above + 1, len(first)),
                token=_filled(table[first, t], nodes, PAD_ID),
                first_leaf=_filled(first, nodes, capacity),
                last_leaf=_filled(last, nodes, capacity),
                ends=_filled(ends, nodes, False, bool),
            )
        )
        branching.append(_capacity(int(np.diff(children).max(initial=0)), like.branching[t] if old else None))
        ending.append(bool(ends.any()) or bool(old and like.ending[t]))
        parents = first
    return Trie(
        levels=tuple(levels),
        items=_filled(order, capacity, -1),
        leaves=_filled(np.argsort(order), capacity, capacity),
        size=np.asarray(size, np.int32),
        branching=tuple(branching),
        ending=tuple(ending),
    )


def restrict(
    trie: Trie,
    deny: Sequence[Collection[int]],
    allow: Sequence[Collection[int] | None] | None = None,
    *,
    fewest_denied: int = 16,
    fewest_filters: int = 1,
) -> Restriction:
    """For each request the items, by their numbers, that it must not get, and those that it may get (None: all).

    Reads `trie` on the host: give it the one that `build_trie` returned, whatever device has a copy. An `allow`
    collection costs 4 bytes for each of the catalogue's items; requests with the very same object share one. Programs
    compile for a longest `deny`, from `fewest_denied` on, and, where any request has one, for a number of filters, from
    `fewest_filters` on, both rounded up to a power of two. Raises UserError for an item that there is not.
    """
    leaves, size, capacity = np.asarray(trie.leaves), int(trie.size), trie.capacity

    def leaves_of(items: Collection[int]) -> np.ndarray:
        numbers = as_array(items)
        wrong = numbers[(numbers < 0) | (numbers >= size)]
        if wrong.size:
            raise UserError(f"no item {wrong[0]}: the catalogue has items 0 to {size - 1}")
        return leaves[numbers]

    denied = [np.unique(leaves_of(items)) for items in deny]
    filters, allowed_before = None, None
    allow = list(allow or ())
    if any(items is not None for items in allow):
        distinct = list({id(items): items for items in allow}.values())
        allowed_before = np.zeros((power_of_two(max(fewest_filters, len(distinct))), capacity + 1), np.int32)
        used = allowed_before[: len(distinct)]
        for row, items in zip(used, distinct, strict=True):
            row[1 + (np.arange(size) if items is None else leaves_of(items))] = 1
        number = {id(items): row for row, items in enumerate(distinct)}
        filters = np.array([number[id(items)] for items in allow], np.int32)
        denied = [row[used[which, row + 1] == 1] for row, which in zip(denied, filters, strict=True)]
        np.cumsum(used, axis=1, dtype=np.int32, out=used)
    width = power_of_two(max(fewest_denied, *map(len, denied), 0))
    return Restriction(np.stack([_filled(row, width, capacity) for row in denied]), filters, allowed_before)


def as_array(items: Collection[int]) -> Int[np.ndarray, "M"]:
    """The numbers, which may come as an array; then nothing is copied."""
    return items if isinstance(items, np.ndarray) else np.fromiter(items, np.int64, len(items))


def _table(sequences: Int[np.ndarray, "N C"] | Sequence[Sequence[int]]) -> Int[np.ndarray, "N C"]:
    if isinstance(sequences, np.ndarray):
        table = sequences
        lengths = np.where(table != PAD_ID, np.arange(1, table.shape[1] + 1), 0).max(axis=1, initial=0)
    else:
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        table = np.full((len(sequences), lengths.max(initial=0)), PAD_ID, np.int64)
        flat = np.fromiter(itertools.chain.from_iterable(sequences), np.int64, int(lengths.sum()))
        table[np.arange(table.shape[1]) < lengths[:, None]] = flat
    if not len(table):
        raise UserError("a catalogue needs at least one sequence")
    if not lengths.all():
        raise UserError(f"sequence {np.argmin(lengths)} is empty")
    wrong = (table < 0) | ((table == PAD_ID) & (np.arange(table.shape[1]) < lengths[:, None]))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f"sequence {row} has token {table[row, column]}: tokens are positive, 0 is padding")
    return table[:, : lengths.max()].astype(np.int32)


def _shown(row: Int[np.ndarray, "C"]) -> str:
    return str([int(token) for token in row if token != PAD_ID])


def _capacity(count: int, least: int | None) -> int:
    """The least of 2^k and 1.5 * 2^k that is not below `count`, nor below `least`."""
    power = power_of_two(count)
    return max(power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power, least or 1)


def _filled(values: np.ndarray, size: int, fill: int | bool, dtype: type = np.int32) -> np.ndarray:
    array = np.full(size, fill, dtype)
    array[: len(values)] = values
    return array
