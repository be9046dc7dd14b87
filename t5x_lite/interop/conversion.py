"""Whole models from one format to another, vocabulary included."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from t5x_lite import run_folder
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.vocabularies import EOS_ID, PAD_ID, Vocabulary
from t5x_lite.errors import UserError, first_words
from t5x_lite.interop.growth import NewTokens, grown
from t5x_lite.interop.hugging_face import matrix_shape, their_names, write_config
from t5x_lite.interop.restore import restore_partial
from t5x_lite.interop.source import Source, transposed
from t5x_lite.interop.tokenizer import write_tokenizer
from t5x_lite.model import T5Config, abstract_params
from t5x_lite.model.names import named, nested

FORMATS = ("hf", "t5x_lite")
DTYPES = ("float32", "bfloat16")

_FILE_SIZE = 5_000_000_000  # bytes of one safetensors file: what is in memory at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Weights:
    """A checkpoint without optimizer."""

    params: Any


def convert(
    source: Source,
    folder: str,
    *,
    vocabulary: Vocabulary,
    format: str = "t5x_lite",
    dtype: str | None = None,
    new_tokens: NewTokens | None = None,
) -> str:
    """Writes a source's model as a folder of `format`, and returns a line that says what it holds.

    't5x_lite' is a run folder at step 0, ready for `infer`, `evaluate` and INITIAL_CHECKPOINT_PATH; 'hf' is what
    transformers' AutoModelForSeq2SeqLM and AutoTokenizer load. `dtype` is the stored one unless given.

    The folder appears whole or not at all. Raises UserError where it exists and is not empty, and where the vocabulary
    has more ids than the model has rows.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {folder!r} exists and is not empty; name a new folder")
    stored = source.dtype if source.dtype in DTYPES else "float32"  # float16 widens exactly; T5 overflows in it
    config = dataclasses.replace(source.config, scan_layers=False, param_dtype=dtype or stored)
    if vocabulary.size > config.vocab_size:
        raise UserError(
            f"{source.where}: the model has {config.vocab_size} rows and the vocabulary {vocabulary.size} ids; "
            "name the vocabulary that the model was trained with"
        )
    if new_tokens:
        config, vocabulary, source = grown(source, config, vocabulary, new_tokens)
    try:
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    except (OSError, ValueError) as error:  # ValueError: '.' has no name
        raise UserError(f"--to {folder!r} cannot be made ({first_words(error)}); name a new folder") from None
    (_write_hugging_face if format == "hf" else _write_run)(source, config, vocabulary, unfinished)
    if target.exists():
        target.rmdir()
    unfinished.rename(target)
    tokens = f"{vocabulary.size} tokens, {config.vocab_size} rows"
    return f"{target}: {config.num_parameters:,} parameters in {config.param_dtype}, {tokens}, from {source.where}"


def _write_run(source: Source, config: T5Config, vocabulary: Vocabulary, folder: Path) -> None:
    params = restore_partial(abstract_params(config), source)
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, _Weights(params), data_state={})
    checkpoints.close()
    vocabulary.save(folder / "vocabulary")
    manifest = run_folder.describe_model(config, vocabulary, source.lengths) | {"hugging_face": source.hugging_face}
    run_folder.write_manifest(folder, manifest)


def _write_hugging_face(source: Source, config: T5Config, vocabulary: Vocabulary, folder: Path) -> None:
    """File after file, each holding as many tensors as fit: one of them is in memory at a time."""
    shapes = named(abstract_params(config))
    size = np.dtype(jax.numpy.dtype(config.param_dtype)).itemsize
    files: list[dict[str, str]] = []
    filled = _FILE_SIZE
    for name, theirs in their_names(config).items():
        of_tensor = size * shapes[name].size
        if filled + of_tensor > _FILE_SIZE:
            files.append({})
            filled = 0
        files[-1][name] = theirs
        filled += of_tensor
    where = {}
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = _their_tensors(source, config, {name: shapes[name] for name in names})
        save_file({names[name]: tensor for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names.values(), file)
    if len(files) > 1:
        index = {"metadata": {"total_size": size * config.num_parameters}, "weight_map": where}
        _write_json(folder / "model.safetensors.index.json", index)
    original = source.hugging_face
    _write_json(folder / "config.json", write_config(config, config.param_dtype, original.get("config", {})))
    generation = {"decoder_start_token_id": PAD_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    _write_json(folder / "generation_config.json", original.get("generation_config", generation))
    write_tokenizer(vocabulary, folder, original.get("tokenizer_config"))


def _their_tensors(source: Source, config: T5Config, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors in PyTorch's layout, without the rows that pad the vocabulary."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host) for name, leaf in shapes.items()}
    loaded = named(restore_partial(nested(like), source))
    tensors = {}
    for name in shapes:
        values = np.asarray(loaded.pop(name))
        matrix = values.reshape(matrix_shape(name, values.shape))
        matrix = transposed(matrix) if name.endswith(("/kernel", "/rel_embedding")) else matrix
        if name in ("token_embedder/embedding", "decoder/logits_dense/kernel"):
            matrix = matrix[: config.vocab_size]
        tensors[name] = matrix
    return tensors


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
