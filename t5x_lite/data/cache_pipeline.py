"""Writes the parts of a packed cache with Apache Beam: read, tokenise, deal out to shards, pack, write.

An example goes to the shard, and there to the place, that a hash of its number gives it. So a shard is a random part
of its split in random order, and the bytes are the same on any runner with any number of workers. The steps are plain
functions, each over one element; every file has another name until it is whole, so that a runner may repeat them.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5x_lite import config
from t5x_lite.data import vocabularies
from t5x_lite.data.cache_format import VOCABULARY, Part, Shard, dtype_of, encode_row, shard_name, write_part
from t5x_lite.data.packing import first_fit
from t5x_lite.data.token_store import batches_of_seqio
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError

_EXAMPLES_A_SHARD = 50_000
_ROWS_A_BLOCK = 256  # read by one worker and handed to another

Split = tuple[str, str]  # (task, its split)
Block = tuple[str, str, int, Sequence[Any]]  # (task, split, number of the first, rows; or arrays of token ids)
Key = tuple[str, str, int]  # (task, split, shard)
Dealt = tuple[bytes, bytes, bytes]  # (the example's place in its shard, inputs, targets)

_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a worker must know; `shards` is how many each split has, `gin` and `module` make the tasks there."""

    output: str
    module: str | None
    gin: str
    lengths: Mapping[str, int]
    pack: bool
    seed: int
    dtype: str
    shards: Mapping[Split, int]
    made_from: Mapping[str, Mapping[str, Any]]  # by task


def make_recipe(
    output: str,
    made_from: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[Split, int],
    vocabulary: Vocabulary,
    lengths: Mapping[str, int],
    *,
    module: str | None,
    pack: bool,
    seed: int,
) -> Recipe:
    """`sizes` are numbers of examples, which decide how many shards there are."""
    shards = {split: max(1, math.ceil(size / _EXAMPLES_A_SHARD)) for split, size in sizes.items()}
    dtype = dtype_of(vocabulary.size, lengths)
    return Recipe(output, module, config.text(), dict(lengths), pack, seed, dtype, shards, made_from)


def run(recipe: Recipe, beam_flags: Sequence[str]) -> None:
    """Writes the recipe's parts. Raises UserError where Beam is not installed, and for a worker's UserError."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("caching runs on Apache Beam, which is not installed: pip install 't5x_lite[cache]'") from None
    pipeline = beam.Pipeline(options=PipelineOptions(list(beam_flags)))
    _ = (
        pipeline
        | "splits" >> beam.Create(sorted(recipe.shards))
        | "spread splits" >> beam.Reshuffle()
        | "read" >> beam.FlatMap(functools.partial(read, recipe))
        | "spread blocks" >> beam.Reshuffle()
        | "tokenise" >> beam.FlatMap(functools.partial(tokenize, recipe))
        | "shards" >> beam.GroupByKey()
        | "pack" >> beam.Map(functools.partial(write_shard, recipe))
        | "parts" >> beam.GroupByKey()
        | "manifests" >> beam.Map(functools.partial(finish_part, recipe))
    )
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # of whatever kind the runner wraps a worker's error in
        said = str(error) if isinstance(error, UserError) else str(error).partition("errors.UserError: ")[2]
        if not said:
            raise
        raise UserError(said.split(" [while running")[0]) from None


# ---------------------------------------------------------------------- the steps


def read(recipe: Recipe, split: Split) -> Iterator[Block]:
    """The rows of a split, in blocks; of other people's tasks the tokenised examples."""
    from t5x_lite.data import registry

    vocabulary = _prepared(recipe)
    task, name = registry.get_mixture_or_task(split[0]), split[1]
    instructions = registry.instructions_of(task)
    first = 0
    if instructions:
        rows = instructions.source.rows(name)
        while block := list(itertools.islice(rows, _ROWS_A_BLOCK)):
            yield (*split, first, block)
            first += len(block)
        return
    for columns in batches_of_seqio(registry.with_vocabulary(task, vocabulary), name, recipe.lengths):
        arrays = [np.split(ids.astype(recipe.dtype), np.cumsum(lengths)[:-1]) for lengths, ids in columns]
        block = list(zip(*arrays, strict=True))
        yield (*split, first, block)
        first += len(block)


def tokenize(recipe: Recipe, block: Block) -> Iterator[tuple[Key, list[Dealt]]]:
    """The examples of a block, dealt out to the shards of their split."""
    from t5x_lite.data import registry

    vocabulary = _prepared(recipe)
    task, split, first, rows = block
    instructions = registry.instructions_of(registry.get_mixture_or_task(task))
    dealt: dict[int, list[Dealt]] = {}
    for number, row in enumerate(rows, first):
        if instructions:
            rendered = instructions.render_row(split, number, row)
            tokens = (instructions.tokenize(example, vocabulary, recipe.lengths) for example in rendered)
            examples = [[np.array(each[key], recipe.dtype) for key in ("inputs", "targets")] for each in tokens]
        else:
            examples = [row]
        for position, (inputs, targets) in enumerate(examples):
            place = hashlib.sha256(repr((recipe.seed, task, split, number, position)).encode()).digest()
            shard = int.from_bytes(place[:8], "big") % recipe.shards[task, split]
            dealt.setdefault(shard, []).append((place[8:24], inputs.tobytes(), targets.tobytes()))
    for shard, examples in dealt.items():
        yield (task, split, shard), examples


def write_shard(recipe: Recipe, dealt: tuple[Key, Iterable[list[Dealt]]]) -> tuple[str, tuple[str, Shard]]:
    """Packs one shard's examples, in the order of their places, and writes the file."""
    (task, split, number), chunks = dealt
    examples = [
        (np.frombuffer(inputs, recipe.dtype), np.frombuffer(targets, recipe.dtype))
        for _, inputs, targets in sorted(itertools.chain.from_iterable(chunks))
    ]
    input_lengths, target_lengths = ([len(example[part]) for example in examples] for part in (0, 1))
    if recipe.pack:
        rows = first_fit(input_lengths, target_lengths, recipe.lengths["inputs"], recipe.lengths["targets"])
    else:
        rows = [[example] for example in range(len(examples))]
    content = _array_record(encode_row([examples[i] for i in row], recipe.dtype) for row in rows)
    name = shard_name(split, number, recipe.shards[task, split])
    path = epath.Path(recipe.output) / task / name
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
    counts = len(rows), len(examples), sum(input_lengths), sum(target_lengths)
    return task, (split, Shard(name, *counts, len(content), hashlib.sha256(content).hexdigest()))


def finish_part(recipe: Recipe, written: tuple[str, Iterable[tuple[str, Shard]]]) -> None:
    """Writes the manifest that makes a part whole."""
    task, shards = written
    splits: dict[str, list[Shard]] = {}
    for split, shard in sorted(shards, key=lambda each: each[1].name):
        splits.setdefault(split, []).append(shard)
    write_part(recipe.output, Part(task, recipe.made_from[task], splits))


def _array_record(records: Iterable[bytes]) -> bytes:
    """The bytes of an ArrayRecord file; made on the local disk, where alone its writer writes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "shard")
        # A group is what is read at once: one row, since training reads rows in random order.
        writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
        with open(path, "rb") as file:
            return file.read()


def _prepared(recipe: Recipe) -> Vocabulary:
    """Makes this process one that knows the tasks; returns the cache's vocabulary."""
    with _lock:
        return _prepare(recipe.output, recipe.module, recipe.gin)


@functools.lru_cache(maxsize=1)
def _prepare(output: str, module: str | None, gin: str) -> Vocabulary:
    from t5x_lite.data import registry

    config.restore(gin)
    if module:
        registry.import_module(module)
    return vocabularies.load(epath.Path(output) / VOCABULARY)
