"""Files of named tensors, read tensor by tensor and slice by slice: safetensors, and PyTorch's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from t5x_lite.errors import UserError, first_words

# The first name that is there is read; each may be one file, or an index of the files that share the tensors.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_SAFETENSORS_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}

Index = Sequence[slice]


class TensorFiles(Protocol):
    """Named tensors on disk."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor; a view of the file where that is possible."""


def open_tensor_files(folder: Path) -> TensorFiles:
    """The weights of a Hugging Face folder; UserError where there are none, or an index names a file that is not."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if found is None:
        raise UserError(f"{str(folder)!r} has no weights; it needs one of {', '.join(WEIGHT_FILES)}")
    where = _files_of_tensors(found)
    return (_Safetensors if "safetensors" in found.name else _Torch)(found, where)


def _files_of_tensors(path: Path) -> dict[str, Path] | None:
    """{tensor: file} of an index; None for a single file."""
    if path.suffix != ".json":
        return None
    try:
        names = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is no index of weight files ({error!r}); get it again") from None
    missing = sorted({file for file in names.values() if not (path.parent / file).exists()})
    if missing:
        raise UserError(f"{str(path)!r} names {missing[0]!r}, which is not there; get the missing file(s)")
    return {name: path.parent / file for name, file in names.items()}


class _Safetensors:
    """Each read maps its tensor alone: what has been copied from it leaves this process's memory with it.

    The format is a length of 8 bytes, a JSON header {tensor: {dtype, shape, data_offsets}}, and the tensors. The
    safetensors package checks files here and writes them elsewhere; its readers copy what they read.
    """

    def __init__(self, path: Path, where: dict[str, Path] | None):
        self._tensors: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in sorted(set(where.values())) if where else [path]:
            try:
                safetensors.safe_open(file, framework="np")
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{str(file)!r} is no whole safetensors file ({error}); get it again") from None
            with open(file, "rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            self._tensors |= {name: (file, 8 + length, entry) for name, entry in header.items()}
        for name in where or ():
            if name not in self._tensors:
                raise UserError(f"{str(path)!r} says that {where[name].name!r} has {name!r}, and it has not")

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name][2]["shape"])

    def dtype(self, name: str) -> np.dtype:
        dtype = self._tensors[name][2]["dtype"]
        if dtype not in _SAFETENSORS_DTYPES:
            raise UserError(f"tensor {name!r} is {dtype}; weights are read from {', '.join(_SAFETENSORS_DTYPES)}")
        return np.dtype(_SAFETENSORS_DTYPES[dtype])

    def read(self, name: str, index: Index) -> np.ndarray:
        file, start, entry = self._tensors[name]
        offset = start + entry["data_offsets"][0]
        return np.memmap(file, self.dtype(name), "r", offset, self.shape(name))[tuple(index)]


class _Torch:
    """PyTorch's pickles, for which PyTorch must be installed; memory-mapped and loaded as weights only."""

    def __init__(self, path: Path, where: dict[str, Path] | None):
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{str(path)!r} is PyTorch's own format and PyTorch is not installed: pip install torch, or get the "
                "weights as model.safetensors"
            ) from None
        self._torch = torch
        self._tensors = {}
        for file in sorted(set(where.values())) if where else [path]:
            try:
                self._tensors |= torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except Exception as error:
                raise UserError(
                    f"{str(file)!r} is no readable file of PyTorch weights ({first_words(error)})"
                ) from None

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        return self._numpy(self._tensors[name].flatten()[:0]).dtype

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._numpy(self._tensors[name][tuple(index)])

    def _numpy(self, tensor) -> np.ndarray:
        if tensor.dtype == self._torch.bfloat16:  # NumPy has no such type of its own
            return tensor.view(self._torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
