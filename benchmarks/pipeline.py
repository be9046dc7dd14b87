"""The input pipeline alone against the training that it feeds: real tokens a second of each, and their ratio.

python benchmarks/pipeline.py --gin_file=gin/qa.gin --gin.MODEL_DIR=/tmp/pipeline
"""

import statistics
import time

import jax
import numpy as np

from t5x_lite import config

_BATCHES = 500
_STEPS = 30


def main(argv: list[str]) -> None:
    config.parse(argv, __doc__)
    from t5x_lite.data.token_store import materialize
    from t5x_lite.training import loop
    from t5x_lite.training.run import prepare
    from t5x_lite.training.state import init_state

    run = prepare(config.build("train"))
    began = time.perf_counter()
    stores = [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    examples = sum(map(len, stores))
    print(f"SeqIO once     {examples / (time.perf_counter() - began):12,.0f} examples/s ({examples:,} examples)")

    iterator = loop.make_iterator(run, stores)
    batches = []
    began = time.perf_counter()
    for _ in range(_BATCHES):
        batches.append(next(iterator))
    pipeline = sum(map(real_tokens, batches)) / (time.perf_counter() - began)
    print(f"pipeline alone {pipeline:12,.0f} real tokens/s (windows, packing, features; one thread)")

    cfg = run.config
    with cfg.partitioner.context():
        state = init_state(run.model, cfg.optimizer, jax.random.key(0), cfg.partitioner)
        train_step = loop.train_step_of(run)
        seconds = []
        for batch in batches[:_STEPS]:
            began = time.perf_counter()
            state, _ = train_step(state, cfg.partitioner.global_batch(batch), {})
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
    training = real_tokens(batches[0]) / statistics.median(seconds[5:])
    print(f"training alone {training:12,.0f} real tokens/s (median of {_STEPS - 5} steps)")
    print(f"ratio          {pipeline / training:12.1f}")


def real_tokens(batch: dict[str, np.ndarray]) -> int:
    return np.count_nonzero(batch["encoder_input_tokens"]) + np.count_nonzero(batch["decoder_loss_weights"])


if __name__ == "__main__":
    config.run_door(main)
