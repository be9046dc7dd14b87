"""What saving costs a step: the same training without saving, with saving in the background, and with waiting for it.

python benchmarks/checkpoint.py [--model=FILE] [--steps=100] [--period=25] [--rounds=3]

Every round takes each way in turn, from the same state, on the same batch. Printed are the median time of a step that
saves nothing, the time a save keeps the loop from its next step, how long it takes to be whole on disk, and what a
whole round takes a step, as a ratio to that without saving.
"""

import shutil
import statistics
import tempfile
import time

from t5x_lite import config

_INPUTS, _TARGETS, _ROWS = 64, 16, 16
_VOCABULARY = 32128  # rows of a model's tables whose file does not say


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model", default="gin/models/tiny.gin", help="gin file of the model")
        parser.add_argument("--steps", type=int, default=100, help="of each way in a round")
        parser.add_argument("--period", type=int, default=25, help="steps between two saves")
        parser.add_argument("--rounds", type=int, default=3)

    args = config.parse_flags(argv, __doc__, flags)
    config.load([args.model, "gin/meshes/one_device.gin"])
    import jax

    train, state, batch = _setup()
    state = train(state, batch)  # compiles
    jax.block_until_ready(state)
    ways: dict[str, list[_Round]] = {"none": [], "background": [], "waiting": []}
    for _ in range(args.rounds):
        for way, rounds in ways.items():
            state, found = _round(train, state, batch, way, args.steps, args.period)
            rounds.append(found)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{args.model}: state of {size / 1e6:,.0f} MB, a save every {args.period} steps, {args.rounds} rounds")
    base = statistics.median(each.per_step for each in ways["none"])
    for way, rounds in ways.items():
        per_step = statistics.median(each.per_step for each in rounds)
        line = f"{way:12} {per_step * 1e3:8.1f} ms a step, {per_step / base:.3f} of that without saving"
        if blocked := [seconds for each in rounds for seconds in each.blocked]:
            whole = statistics.median(seconds for each in rounds for seconds in each.whole if seconds)
            line += f"; a save blocks {statistics.median(blocked):.3f} s and is whole after {whole:.2f} s"
        print(line)


class _Round:
    def __init__(self):
        self.per_step = 0.0
        self.blocked: list[float] = []
        self.whole: set[float | None] = set()  # None where there is none yet


def _setup():
    """(the step as a function of state and batch, a state, a batch on the device)."""
    import dataclasses

    import jax
    import numpy as np

    from t5x_lite.training.optimizers import adamw
    from t5x_lite.training.schedules import learning_rate
    from t5x_lite.training.state import init_state
    from t5x_lite.training.step import make_train_step

    model = config.build("T5Config")
    model = dataclasses.replace(model, vocab_size=model.vocab_size or _VOCABULARY)
    partitioner, rate = config.build("Partitioner"), learning_rate("constant", base_learning_rate=1e-4)
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(3, 1000, (_ROWS, n)).astype(np.int32) for n in (_INPUTS, _TARGETS))
    ones = np.ones_like(targets)
    host = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.ones_like(inputs),
        "decoder_input_tokens": targets,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": ones,
        "decoder_loss_weights": ones,
    }
    optimizer = adamw(rate)
    with partitioner.context():
        state = init_state(model, optimizer, jax.random.key(0), partitioner)
        step = make_train_step(model, optimizer, partitioner, learning_rate=rate)

    def train(state, batch):
        with partitioner.context():
            return step(state, batch, {})[0]

    return train, state, partitioner.global_batch(host)


def _round(train, state, batch, way: str, steps: int, period: int):
    """The state after so many steps, and what they took: `steps` steps and all their saves, until the last is whole."""
    import jax

    from t5x_lite.checkpoints import Checkpoints

    found, folder = _Round(), tempfile.mkdtemp()
    checkpoints = Checkpoints(folder, keep_last=1)
    began = time.perf_counter()
    for number in range(1, steps + 1):
        state = train(state, batch)
        if way != "none" and number % period == 0:
            jax.block_until_ready(state)
            before = time.perf_counter()
            checkpoints.save(number, state, {"window": 0, "row": 0})
            if way == "waiting":
                checkpoints.wait()
            found.blocked.append(time.perf_counter() - before)
            found.whole.add(checkpoints.background_seconds)  # of the save before this one, unless it was waited for
    jax.block_until_ready(state)
    checkpoints.wait()
    found.per_step = (time.perf_counter() - began) / steps
    found.whole.add(checkpoints.background_seconds)
    shutil.rmtree(folder)
    return state, found


if __name__ == "__main__":
    config.run_door(main)
