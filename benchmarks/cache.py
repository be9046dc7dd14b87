"""Reading a packed cache on one core: real tokens a second, the time to resume at step 1,000,000, what is imported.

python benchmarks/cache.py --folder=/tmp/cache_benchmark

Rows are made up, with lengths like those of the tasks; TrainIterator makes batches of the same examples in the same
process. Seconds are of the process's own time (all its threads), since a shared machine's clock says little.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from etils import epath

from t5x_lite.data import vocabularies
from t5x_lite.data.cache_format import FORMAT, MANIFEST, dtype_of, read_part, write_json
from t5x_lite.data.cache_pipeline import Recipe, finish_part, write_shard
from t5x_lite.data.packed_cache import CacheIterator, open_cache
from t5x_lite.data.pipeline import TrainIterator
from t5x_lite.data.token_store import TokenStore
from t5x_lite.doors import parse_flags, run_door

_TOKENS = 40_000_000  # of all tasks of a kind of rows; 80 MB
_TASKS = 4
_SECONDS = 4.0
# name: (row length of inputs and of targets, mean length of an example's)
_KINDS = {"qa": ((128, 32), (52, 5)), "recommend": ((128, 48), (40, 14)), "long": ((1024, 256), (700, 150))}
_VOCABULARY = 32_128

_IMPORTED = """
import json, sys
for name in ("tensorflow", "seqio"):
    sys.modules[name] = None
import time
import jax
began = time.perf_counter()
from t5x_lite.data import packed_cache
print(json.dumps([time.perf_counter() - began, "apache_beam" in sys.modules]))
"""


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--folder", required=True, help="where caches are written, and removed again")

    folder = Path(parse_flags(argv, __doc__, flags).folder)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'rows':10} {'examples':>10} {'writing':>12} {'cache':>14} {'no cache':>14} {'ratio':>6} {'resume':>8}")
    for kind, (row, means) in _KINDS.items():
        lengths = dict(zip(("inputs", "targets"), row, strict=True))
        stores = [made_up(f"{kind}_{n}", n, lengths, means) for n in range(_TASKS)]
        began = time.process_time()
        write(folder / kind, stores, lengths)
        writing = sum(map(len, stores)) / (time.process_time() - began)
        cache = open_cache(folder / kind)
        cached = CacheIterator(cache, batch_size=32, seed=0)
        rate = tokens_a_second(cached)
        plain = tokens_a_second(TrainIterator(stores, cache.rates, lengths=lengths, batch_size=32, seed=0))
        began = time.perf_counter()
        late = CacheIterator(open_cache(folder / kind), batch_size=32, seed=0)
        late.restore(late.state() | {"row": 32 * 1_000_000})
        next(late)
        resume = time.perf_counter() - began
        print(
            f"{kind:10} {sum(map(len, stores)):10,} {writing:8,.0f} ex/s {rate:10,.0f} t/s {plain:10,.0f} t/s "
            f"{rate / plain:6.2f} {resume:6.3f} s",
            flush=True,
        )
        shutil.rmtree(folder / kind)
    found = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True)
    seconds, beam = json.loads(found.stdout)
    print(f"imported in {seconds:.2f} s after jax, without TensorFlow and SeqIO, Beam {'too' if beam else 'neither'}")


def made_up(name: str, seed: int, lengths: dict[str, int], means: tuple[int, int]) -> TokenStore:
    rng = np.random.default_rng(seed)
    count = _TOKENS // _TASKS // sum(means)
    columns = []
    for part, mean in zip(("inputs", "targets"), means, strict=True):
        sizes = np.clip(rng.poisson(mean, count), 2, lengths[part])
        ids = rng.integers(2, _VOCABULARY, sizes.sum(), dtype=np.int32)
        columns += [ids, np.concatenate([[0], np.cumsum(sizes)])]
    return TokenStore(name, *columns)


def write(folder: Path, stores: list[TokenStore], lengths: dict[str, int]) -> None:
    """As `python -m t5x_lite.cache` does after tokenising, without Beam."""
    vocabulary = vocabularies.byte()
    (folder / "vocabulary").mkdir(parents=True)
    vocabulary.save(folder / "vocabulary")
    dtype = dtype_of(_VOCABULARY, lengths)
    shards = {(store.name, "train"): 8 for store in stores}
    recipe = Recipe(str(folder), None, "", lengths, True, 0, dtype, shards, {store.name: {} for store in stores})
    for store in stores:
        written = []
        for shard in range(8):
            examples = [store.example(i) for i in range(shard, len(store), 8)]
            dealt = [
                (i.to_bytes(8, "big"), inputs.astype(dtype).tobytes(), targets.astype(dtype).tobytes())
                for i, (inputs, targets) in enumerate(examples)
            ]
            written.append(write_shard(recipe, ((store.name, "train", shard), [dealt]))[1])
        finish_part(recipe, (store.name, written))
    manifest = {
        "format": FORMAT,
        "parts": {store.name: read_part(folder, store.name).sha256 for store in stores},
        "rates": [1 / len(stores)] * len(stores),
        "lengths": lengths,
        "pack": True,
        "dtype": dtype,
        "vocabulary": {"sha256": vocabulary.sha256},
    }
    write_json(epath.Path(folder) / MANIFEST, manifest)


def tokens_a_second(iterator: CacheIterator | TrainIterator) -> float:
    next(iterator)
    tokens, began = 0, time.process_time()
    while time.process_time() - began < _SECONDS:
        batch = next(iterator)
        tokens += np.count_nonzero(batch["encoder_input_tokens"]) + np.count_nonzero(batch["decoder_loss_weights"])
    return tokens / (time.process_time() - began)


if __name__ == "__main__":
    run_door(main)
