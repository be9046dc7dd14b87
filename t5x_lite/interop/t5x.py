"""T5X's own checkpoints (google-research/t5x, checkpoints.py), read: a msgpack file, and a zarr array for each
partitioned parameter beside it.

    checkpoint_1000000/checkpoint                                          msgpack: small arrays, TensorStore specs
    checkpoint_1000000/target.encoder.layers_0.attention.query.kernel/     zarr

The last T5X, which saved through Orbax, has the same in `checkpoint_1000000/state`, and names instead of specs.
Scanned models stack their layers along axis 1 below `encoder/encoder`, early ones below `encoder/layers`.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError, first_words, nearest
from t5x_lite.interop.hugging_face import matrix_shape
from t5x_lite.interop.source import Index, TensorSource, stacked_name
from t5x_lite.model import T5Config
from t5x_lite.partitioning import VOCAB_MULTIPLE

STATE_FILE = "checkpoint"

_ORBAX_FOLDER = "state"
_PLACEHOLDER = "PLACEHOLDER://"  # how Orbax says that an array lies beside
_LAYER_AXIS = 1
_DTYPES = ("float32", "bfloat16", "float16")


def find_checkpoint(path: epath.Path) -> epath.Path | None:
    """The checkpoint folder that `path` means: itself, its state file's, or the latest `checkpoint_N` in it."""
    if path.name == STATE_FILE and path.is_file():
        return path.parent
    if found := _with_state_file(path):
        return found
    steps = {}
    for child in path.iterdir() if path.is_dir() else ():
        number = re.fullmatch(r"checkpoint_(\d+)", child.name)
        if number and (found := _with_state_file(child)):
            steps[int(number[1])] = found
    return steps[max(steps)] if steps else None


def _with_state_file(folder: epath.Path) -> epath.Path | None:
    return next((place for place in (folder, folder / _ORBAX_FOLDER) if (place / STATE_FILE).is_file()), None)


class T5XSource(TensorSource):
    """The weights of one checkpoint folder. What model it is, the shapes say."""

    readers = 1  # one stored array is in memory at a time

    def __init__(self, folder: epath.Path):
        self.where = str(folder)
        self.hugging_face: dict[str, Any] = {}
        self._folder = folder
        self._leaves = self._read_state()
        self._last: tuple[str, np.ndarray] | None = None
        self._check()

    def vocabulary(self) -> Vocabulary:
        raise UserError(
            f"{self.where}: T5X keeps no vocabulary with its weights; name one: a SentencePiece .model file, 'bytes', "
            "or a Hugging Face model such as google/flan-t5-small"
        )

    @property
    def dtype(self) -> str:
        leaf = self._leaves["token_embedder/embedding"]
        return str(leaf.dtype if isinstance(leaf, np.ndarray) else self._open(leaf).dtype.name)

    def read_matrix(self, name: str, index: Index) -> np.ndarray:
        if name in self._leaves:
            values = self._whole(name)
        else:
            layers = np.moveaxis(self._whole(stacked_name(name)), _LAYER_AXIS, 0)
            values = layers[int(re.search(r"/layers_(\d+)/", name)[1])]
        if values.dtype.name not in _DTYPES:
            raise UserError(f"{self.where}: {name!r} is {values.dtype}; weights are read from {', '.join(_DTYPES)}")
        values = values.reshape(matrix_shape(name, values.shape))
        expected = matrix_shape(name, self.stored_shapes[name])
        if values.shape != expected:
            raise UserError(f"{self.where}: {name!r} has shape {values.shape}, and the others' shapes mean {expected}")
        return values[index]

    def storage_order(self, name: str) -> Any:
        return stacked_name(name)

    @functools.cached_property
    def config(self) -> T5Config:
        leaves = self._leaves
        scanned = any("/layers/" in name for name in leaves)
        first = "layers" if scanned else "layers_0"
        per_layer = f"encoder/{first}/relpos_bias/rel_embedding" in leaves
        bias = f"encoder/{first}/relpos_bias/rel_embedding" if per_layer else "encoder/relpos_bias/rel_embedding"
        gated = f"encoder/{first}/mlp/wi_0/kernel" in leaves
        mlp_input = f"encoder/{first}/mlp/{'wi_0' if gated else 'wi'}/kernel"
        vocab_size, d_model = self._shape("token_embedder/embedding")
        heads, buckets = self._shape(bias)[0], self._shape(bias)[-1]
        query = self._shape(f"encoder/{first}/attention/query/kernel")
        inner = int(np.prod(query)) // d_model // (query[_LAYER_AXIS] if scanned else 1)
        return T5Config(
            vocab_size=vocab_size,
            d_model=d_model,
            num_heads=heads,
            head_dim=inner // heads,
            d_ff=self._shape(mlp_input)[-1],
            num_encoder_layers=self._num_layers("encoder", scanned),
            num_decoder_layers=self._num_layers("decoder", scanned),
            activations=("gelu", "linear") if gated else ("relu",),
            relative_attention_num_buckets=buckets,
            relative_bias_per_layer=per_layer,
            tie_embeddings="decoder/logits_dense/kernel" not in leaves,
            vocab_multiple=VOCAB_MULTIPLE,
            scan_layers=scanned,
        )

    def _num_layers(self, part: str, scanned: bool) -> int:
        if scanned:
            return self._shape(f"{part}/layers/pre_mlp_layer_norm/scale")[_LAYER_AXIS]
        return len({name.split("/")[1] for name in self._leaves if name.startswith(f"{part}/layers_")})

    def _read_state(self) -> dict[str, Any]:
        """{our name: an array, or the name of the zarr folder that holds it}; other states are not looked at."""
        path = self._folder / STATE_FILE
        try:
            state = serialization.msgpack_restore(path.read_bytes())
            target = state.get("optimizer", state)["target"]
        except Exception as error:
            raise UserError(
                f"{str(path)!r} is no T5X checkpoint ({type(error).__name__}: {first_words(error)})"
            ) from None
        return {
            _our_name("/".join(keys)): _stored(leaf)
            for keys, leaf in traverse_util.flatten_dict(target, is_leaf=lambda _, node: "driver" in node).items()
        }

    def _check(self) -> None:
        """The parameters are a T5's, no less and no more; UserError names the first that is not."""
        try:
            names = self.stored_shapes
        except ValueError as error:
            raise UserError(
                f"{self.where}: the arrays of this T5X checkpoint make no T5: {first_words(error)}"
            ) from None
        known = {*names, *map(stacked_name, names)}
        for name in names:
            if name not in self._leaves and stacked_name(name) not in self._leaves:
                raise UserError(f"{self.where}: no parameter {name!r} in this T5X checkpoint")
        for name in self._leaves:
            if name not in known:
                raise UserError(
                    f"{self.where}: {name!r} is no parameter of a T5{nearest(name, names)}; other models that T5X has "
                    "trained are not supported"
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._leaves:
            raise UserError(f"{self.where}: no parameter {name!r} in this T5X checkpoint; it is not a T5")
        leaf = self._leaves[name]
        return tuple(leaf.shape if isinstance(leaf, np.ndarray) else self._open(leaf).shape)

    def _whole(self, name: str) -> np.ndarray:
        """A stored array, kept until the next one is asked for: chunks on disk go across our shards and layers."""
        leaf = self._leaves[name]
        if isinstance(leaf, np.ndarray):
            return leaf
        if self._last is None or self._last[0] != name:
            self._last = None
            stored = self._open(leaf)
            with self._told(leaf):
                self._last = (name, stored.read().result())
        return self._last[1]

    def _open(self, folder: str) -> tensorstore.TensorStore:
        path = str(self._folder / folder)
        local = {"driver": "file", "path": f"{epath.Path(path).absolute()}/"}
        spec = {
            "driver": "zarr",
            "kvstore": f"{path}/" if "://" in path else local,
            "fill_missing_data_reads": False,  # a chunk that was not copied is no zeros
        }
        with self._told(folder):
            return tensorstore.open(spec, open=True, read=True).result()

    @contextlib.contextmanager
    def _told(self, folder: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = first_words(str(error).split(" [")[0])  # a spec follows
            raise UserError(
                f"{self.where}: cannot read {folder!r} of this T5X checkpoint ({reason}); copy it again"
            ) from None


def _our_name(name: str) -> str:
    name = name.replace("/relative_posemb/", "/relpos_bias/")
    return re.sub(r"^(encoder|decoder)/\1/", r"\1/layers/", name)


def _stored(leaf: Any) -> Any:
    if isinstance(leaf, dict):
        path = leaf.get("path") or leaf["kvstore"]["path"]
        return path.rstrip("/").rsplit("/", 1)[-1]
    if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
        return leaf.removeprefix(_PLACEHOLDER)
    return np.asarray(leaf)
