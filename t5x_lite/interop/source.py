"""What every checkpoint that a model can start from offers, and the way of a tensor from a file to its shards."""

import abc
import concurrent.futures
import dataclasses
import functools
import math
import os
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

_BLOCK = 64  # rows transposed at a time: a block's lines stay in the cache, several times faster than all at once
_ALIGNMENT = 64  # bytes


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
    """A source that reads matrices from files: a few at a time, each only as far as this host needs it.

    Host memory peaks at this host's shards: a tensor goes from its file to the memory that its array will own.
    """

    readers = min(4, os.cpu_count() or 1)  # tensors read at a time

    @abc.abstractmethod
    def read_matrix(self, name: str, index: Index) -> np.ndarray:
        """A part of an unrolled parameter, attention's heads and head size being one axis; best a view of a file."""

    def load(self, wanted: Wanted) -> dict[str, Array]:
        targets = sorted(wanted, key=lambda target: self.storage_order(wanted[target][0]))
        with concurrent.futures.ThreadPoolExecutor(self.readers) as pool:
            return dict(zip(targets, pool.map(lambda target: self._place(*wanted[target]), targets), strict=True))

    def storage_order(self, name: str) -> Any:
        """Parameters of equal order lie in one tensor of the file: they are loaded one after the other."""
        return name

    def _place(self, name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        """One global array, each shard of it read for itself."""
        devices: dict[tuple, list] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
            devices.setdefault(bounds, []).append(device)
        values = {bounds: _aligned_empty([stop - start for start, stop in bounds], leaf.dtype) for bounds in devices}
        if "/layers/" in name:
            for layer in range(leaf.shape[0]):  # outermost: a layer is read for all of its shards, then the next
                for ((start, stop), *bounds), out in values.items():
                    if start <= layer < stop:
                        self._fill(out[layer - start], name.replace("/layers/", f"/layers_{layer}/"), bounds)
        else:
            for bounds, out in values.items():
                self._fill(out, name, bounds)
        shards = [jax.device_put(values[bounds], holder) for bounds, holders in devices.items() for holder in holders]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards))

    def _fill(self, out: np.ndarray, name: str, bounds: Sequence[tuple[int, int]]) -> None:
        """Reads a part of an unrolled parameter in our layout."""
        shape = self.stored_shapes[name]
        # What lies outside of the file's tensor is a vocabulary's padding.
        inside = tuple(slice(start, min(stop, size)) for (start, stop), size in zip(bounds, shape, strict=True))
        sizes = tuple(max(0, part.stop - part.start) for part in inside)
        if sizes != out.shape:
            out[...] = 0
            out = out[tuple(map(slice, sizes))]
        if out.size:
            _copy(self._matrix(name, inside, shape), out)

    def _matrix(self, name: str, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        """Heads and head size are one axis in files: reads all of the head sizes of the heads, and cuts."""
        if len(shape) < 3:
            return self.read_matrix(name, index)
        heads = 0 if name.endswith("out/kernel") else 1
        size = shape[heads + 1]
        of_heads, of_size = index[heads], index[heads + 1]
        joined = (*index[:heads], slice(of_heads.start * size, of_heads.stop * size), *index[heads + 2 :])
        matrix = self.read_matrix(name, joined)
        if of_size == slice(0, size):
            return matrix
        whole = matrix.reshape(*matrix.shape[:heads], -1, size, *matrix.shape[heads + 1 :])
        return whole[(slice(None),) * (heads + 1) + (of_size,)]

    @functools.cached_property
    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every unrolled parameter, without the rows that pad the vocabulary."""
        config = dataclasses.replace(self.config, scan_layers=False, vocab_multiple=1)
        return {name: leaf.shape for name, leaf in named(abstract_params(config)).items()}


def transposed(matrix: np.ndarray) -> np.ndarray:
    """The transposed matrix laid out anew."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    _copy(matrix.T, out)
    return out


def _copy(values: np.ndarray, out: np.ndarray) -> None:
    """Values into `out`, which may have another type, and an axis for what is two in it."""
    out = out if out.shape == values.shape else out.reshape(values.shape)
    if values.ndim == 2 and values.strides[0] < values.strides[1]:
        for start in range(0, values.shape[1], _BLOCK):
            out[:, start : start + _BLOCK] = values[:, start : start + _BLOCK]
    else:
        out[...] = values


def _aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Memory that JAX on a CPU takes over as it is; less aligned memory it would copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


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
