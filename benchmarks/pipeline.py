"""The input pipeline alone against the training that it feeds: real tokens a second of each, and their ratio.

python -m benchmarks.pipeline --gin_file=gin/qa.gin --gin.MODEL_DIR=/tmp/pipeline [--record]

The pipeline is timed on one thread: windows, packing and features of tasks that SeqIO has tokenised once. `--record`
keeps what was found (benchmarks.results).
"""

import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import results
from t5x_lite import config
from t5x_lite.data.pipeline import Batch

_BATCHES = 500
_STEPS = 30
_WARM = 5  # steps that are not counted


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--record", action="store_true", help="into benchmarks/results/ and RESULTS.md")

    args = config.parse(argv, __doc__, flags)
    from t5x_lite.data.token_store import materialize
    from t5x_lite.training import loop
    from t5x_lite.training.run import prepare

    run = prepare(config.build("train"))
    began = time.perf_counter()
    stores = [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    tokenised = sum(map(len, stores)) / (time.perf_counter() - began)

    iterator = loop.make_iterator(run, stores)
    began = time.perf_counter()
    batches = [next(iterator) for _ in range(_BATCHES)]
    pipeline = sum(map(real_tokens, batches)) / (time.perf_counter() - began)

    seconds = _seconds_of_steps(run, batches[: _WARM + _STEPS])
    training = statistics.mean(map(real_tokens, batches[_WARM : _WARM + _STEPS])) / statistics.median(seconds[_WARM:])
    rows = {
        "tokenising once, examples/s": [f"{tokenised:,.0f}"],
        "pipeline alone, real tokens/s": [f"{pipeline:,.0f}"],
        "training alone, real tokens/s": [f"{training:,.0f}"],
        "ratio": [f"{pipeline / training:.0f}"],
    }
    for label, cells in rows.items():
        print(f"{label:30}" + "".join(f"{cell:>14}" for cell in cells))
    if args.record:
        raw = {"tokenised": tokenised, "pipeline": pipeline, "steps": seconds}
        results.record("pipeline", ["benchmarks.pipeline", *argv], [""], rows, raw)


def _seconds_of_steps(run, batches: Sequence[Batch]) -> list[float]:
    from t5x_lite.training import loop
    from t5x_lite.training.state import init_state

    cfg = run.config
    seconds = []
    with cfg.partitioner.context():
        state = init_state(run.model, cfg.optimizer, jax.random.key(0), cfg.partitioner)
        train_step = loop.train_step_of(run)
        for batch in batches:
            began = time.perf_counter()
            state, _ = train_step(state, cfg.partitioner.global_batch(batch), {})
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
    return seconds


def real_tokens(batch: Batch) -> int:
    return np.count_nonzero(batch["encoder_input_tokens"]) + np.count_nonzero(batch["decoder_loss_weights"])


if __name__ == "__main__":
    config.run_door(main)
