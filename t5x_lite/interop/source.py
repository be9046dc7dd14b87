"""What every checkpoint that a model can start from offers, and the way of a tensor from a file to its shards."""

import abc
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.model import T5Config, abstract_params
from t5x_lite.model.names import named

Index = tuple[slice, ...]
Wanted = Mapping[str, tuple[str, jax.ShapeDtypeStruct]]

_BLOCK = 32  # rows transposed at a time: a block's lines stay in the cache, three times faster than all at once


class Source(abc.ABC):
    """Weights on disk under the names of our parameter tree, as an unrolled or a scanned model has them.

    `where` is how messages name it. `hugging_face` holds the JSON files of Hugging Face that came with the weights
    ({'config': ..., 'generation_config': ..., 'tokenizer_config': ...}), so that an export gives them back.
    """

    where: str
    hugging_face: dict[str, Any]

    @property
    @abc.abstractmethod
    def config(self) -> T5Config:
        """The model that the weights make, in the layout that they have."""

    @property
    @abc.abstractmethod
    def dtype(self) -> str:
        """The type that most of the weights are stored in."""

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens that prompts and answers may have, where nothing else is asked for."""
        return {"inputs": 2048, "targets": 256}

    @abc.abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that lies beside the weights. UserError where there is none."""

    def parameters(self, *, scanned: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Every parameter that `load` knows, by name."""
        return named(abstract_params(dataclasses.replace(self.config, scan_layers=scanned)))

    @abc.abstractmethod
    def load(self, wanted: Wanted) -> dict[str, Array]:
        """For every key of `wanted`, (a name of `parameters`, the shape, dtype and sharding to give it)."""


class TensorSource(Source):
    """A source that reads matrices from files: one after the other, each only as far as this host needs it.

    Host memory peaks at this host's shards and one tensor more.
    """

    @abc.abstractmethod
    def read_matrix(self, name: str, index: Index) -> np.ndarray:
        """A part of an unrolled parameter, attention's heads and head size being one axis."""

    def load(self, wanted: Wanted) -> dict[str, Array]:
        loaded = {}
        for target in sorted(wanted, key=lambda target: self.storage_order(wanted[target][0])):
            name, leaf = wanted[target]
            loaded[target] = jax.block_until_ready(self._place(name, leaf))
        return loaded

    def storage_order(self, name: str) -> Any:
        """Parameters of equal order lie in one tensor of the file: they are loaded one after the other."""
        return name

    def _place(self, name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        """One global array, each shard of it read for itself."""
        devices: dict[tuple, list] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
            devices.setdefault(bounds, []).append(device)
        shards = []
        for bounds, holders in devices.items():
            values = self._read(name, tuple(slice(*pair) for pair in bounds), leaf.dtype)
            shards += [jax.device_put(values, holder) for holder in holders]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

    def _read(self, name: str, index: Index, dtype: Any) -> np.ndarray:
        """A part of a parameter in our layout; a stack is read layer by layer into place."""
        if "/layers/" in name:
            layers = range(index[0].start, index[0].stop)
            stack = None
            for place, layer in enumerate(layers):
                part = self._read(name.replace("/layers/", f"/layers_{layer}/"), index[1:], dtype)
                if stack is None:
                    stack = np.empty((len(layers), *part.shape), dtype)
                stack[place] = part
            return stack
        shape = self.stored_shapes[name]
        # What lies outside of the file's tensor is a vocabulary's padding.
        inside = tuple(slice(part.start, min(part.stop, size)) for part, size in zip(index, shape, strict=True))
        found = self._read_inside(name, inside, shape).astype(dtype, copy=False)
        missing = [(0, p.stop - p.start - size) for p, size in zip(index, found.shape, strict=True)]
        return np.pad(found, missing) if np.any(missing) else found

    def _read_inside(self, name: str, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        """Heads and head size are one axis in files: reads all of the head sizes of the heads, and cuts."""
        if len(shape) < 3:
            return self.read_matrix(name, index)
        heads = 0 if name.endswith("out/kernel") else 1
        size = shape[heads + 1]
        of_heads = index[heads]
        joined = (*index[:heads], slice(of_heads.start * size, of_heads.stop * size), *index[heads + 2 :])
        matrix = self.read_matrix(name, joined)
        whole = matrix.reshape(*matrix.shape[:heads], -1, size, *matrix.shape[heads + 1 :])
        return whole[(slice(None),) * (heads + 1) + (index[heads + 1],)]

    @functools.cached_property
    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every unrolled parameter, without the rows that pad the vocabulary."""
        config = dataclasses.replace(self.config, scan_layers=False, vocab_multiple=1)
        return {name: leaf.shape for name, leaf in named(abstract_params(config)).items()}


def transposed(matrix: np.ndarray) -> np.ndarray:
    """The transposed matrix laid out anew, in blocks of rows."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _BLOCK):
        out[:, start : start + _BLOCK] = matrix[start : start + _BLOCK].T
    return out


def stacked_name(name: str) -> str:
    """'encoder/layers_3/mlp/wo/kernel' -> 'encoder/layers/mlp/wo/kernel'; other names stay."""
    return re.sub(r"/layers_\d+/", "/layers/", name)


def layer_names(names: Sequence[str]) -> dict[str, list[str]]:
    """{name in a scanned model: its names in an unrolled one, by layer}; names of no layer map to themselves."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(stacked_name(name), []).append(name)
    for group in layers.values():
        group.sort(key=lambda name: int((re.search(r"/layers_(\d+)/", name) or ["", "0"])[1]))
    return layers
