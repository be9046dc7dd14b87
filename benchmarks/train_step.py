"""One training step against T5X's and PyTorch's in one call, on CPU: AdamW, no dropout, random weights.

python -m benchmarks.train_step [--case=small] [--rows=8] [--rounds=5] [--record]

`small` and `base` are T5 v1.1 on rows of 512 + 128 random tokens. `recommend` is the model of gin/recommend.gin on one
of its batches: short examples, packed here, and for transformers each in a row of its own, padded to the longest.

T5X's way in float32 (benchmarks.t5x_style), and transformers' T5 with PyTorch in float32 and under bfloat16 autocast.
Ours clips the gradient's norm, as its gin files do; no peer does. Every engine is a process of its own on the same
cores, and they take turns. The bound is the FLOPs of our rows over what a matrix product of 4096 x 4096 reaches here,
in the fastest of the engines. Quote the ratios, not the seconds. `--record` keeps what was found (benchmarks.results).
"""

import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.engines import Engine, in_process, in_turns
from t5x_lite import config

CASES = ("small", "base", "recommend")
_CORES = len(os.sched_getaffinity(0))
_STEP, _PRODUCT = "step", "product"
_SIDE = 4096
_INPUTS, _TARGETS = 512, 128


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--case", choices=CASES, default="small")
        parser.add_argument("--rows", type=int, default=8, help="of small and base")
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--engine", action="append", choices=list(ENGINES), help="default: all")
        parser.add_argument("--record", action="store_true", help="into benchmarks/results/ and RESULTS.md")

    args = config.parse_flags(argv, __doc__, flags)
    with tempfile.TemporaryDirectory() as folder:
        in_process(_write_case, args.case, args.rows, folder)
        rows, found = _measure({name: ENGINES[name] for name in args.engine or ENGINES}, folder, args.rounds)
    columns = list(found["step"])
    print(f"{args.case}: {found['batch']}, {_CORES} cores, median (least)")
    print(f"{'':20}" + "".join(f"{name:>26}" for name in columns))
    for label, cells in rows.items():
        print(f"{label:20}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"float32 matrix product {found['gflops']:.0f} GFLOP/s: bound {found['bound']:.2f} s")
    if args.record:
        results.record(f"train_step_{args.case}", ["benchmarks.train_step", *argv], columns, rows, found)


def _measure(chosen: dict, folder: str, rounds: int) -> tuple[dict[str, list[str]], dict]:
    """The cells of each row of the table, and the numbers that they are made of."""
    case = json.loads(Path(folder, "case.json").read_text())
    engines = {name: Engine(make, folder) for name, make in chosen.items()}
    steps = in_turns(engines, rounds, _STEP)
    peaks = {name: engine.peak_bytes() for name, engine in engines.items()}
    products = in_turns(engines, rounds, _PRODUCT)
    for engine in engines.values():
        engine.close()

    medians = {name: statistics.median(seconds) for name, seconds in steps.items()}
    fastest = min(map(min, products.values()))  # float32 in every engine
    bound = case["flops"] * fastest / (2 * _SIDE**3)
    ours = next(iter(medians.values()))
    fill = {name: case["real"] / case["padded" if name.startswith("transformers") else "packed"] for name in medians}
    rows = {
        "step, s": [f"{medians[name]:.3f} ({min(steps[name]):.3f})" for name in medians],
        "of the first": [f"{seconds / ours:.2f}" for seconds in medians.values()],
        "of the bound": [f"{seconds / bound:.2f}" for seconds in medians.values()],
        "real tokens/s": [f"{case['real'] / seconds:,.0f}" for seconds in medians.values()],
        "fill": [f"{share:.0%}" for share in fill.values()],
        "peak memory, GB": [f"{peaks[name] / 1e9:.2f}" for name in medians],
    }
    gflops = 2e-9 * _SIDE**3 / fastest
    return rows, {"step": steps, "peak_bytes": peaks, "gflops": gflops, "bound": bound, "batch": case["batch"]}


def _write_case(name: str, rows: int, folder: str) -> None:
    """The model's settings and a batch of it, ours and theirs, in `folder`; in a process of its own."""
    from t5x_lite.interop.hugging_face import write_config
    from t5x_lite.model.flops import train_flops

    model, batch = _recommend(folder) if name == "recommend" else _random(name, rows)
    examples = _examples(batch)
    rows, inputs, targets = *batch["encoder_input_tokens"].shape, batch["decoder_target_tokens"].shape[1]
    theirs = [_padded(part) for part in zip(*examples, strict=True)]
    np.savez(Path(folder, "batch.npz"), **batch)
    np.savez(Path(folder, "padded.npz"), inputs=theirs[0], targets=theirs[1])
    case = {
        "model": dataclasses.asdict(dataclasses.replace(model, dtype="float32", dropout_rate=0.0)),
        "theirs": write_config(model, "float32", {}) | {"dropout_rate": 0.0},
        "batch": f"{rows} x ({inputs} + {targets}) tokens with {len(examples)} examples",
        "flops": rows * train_flops(model, inputs, targets),
        "real": sum(len(part) for example in examples for part in example),
        "packed": rows * (inputs + targets),
        "padded": sum(part.size for part in theirs),
    }
    Path(folder, "case.json").write_text(json.dumps(case))


def _random(size: str, rows: int):
    config.load([f"gin/models/flan_t5_{size}.gin"])
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(3, 32000, (rows, length), np.int32) for length in (_INPUTS, _TARGETS))
    return config.build("T5Config"), {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
    }


def _recommend(folder: str):
    config.load(["gin/recommend.gin"], [f"--gin.MODEL_DIR={folder}/run"])
    from t5x_lite.data.token_store import materialize
    from t5x_lite.training.loop import make_iterator
    from t5x_lite.training.run import prepare

    run = prepare(config.build("train"))
    stores = [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    return run.model, next(make_iterator(run, stores))


def _examples(batch: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of each example of a batch, packed or not."""
    found = []
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    segments = (
        batch.get("encoder_segment_ids", np.ones_like(inputs)),
        batch.get("decoder_segment_ids", np.ones_like(targets)),
    )
    for row in range(len(inputs)):
        for segment in range(1, segments[0][row].max() + 1):
            here = [part[row] == segment for part in segments]
            found.append((inputs[row][here[0]], targets[row][here[1]]))
    return found


def _padded(parts) -> np.ndarray:
    longest = max(map(len, parts))
    return np.stack([np.pad(part, (0, longest - len(part))) for part in parts])


def _t5x_lite(folder: str, dtype: str = "float32"):
    from t5x_lite import host

    os.environ["JAX_PLATFORMS"] = "cpu"
    host.keep_freed_memory()  # as `python -m t5x_lite.train` does
    import jax

    from t5x_lite.model import T5Config
    from t5x_lite.partitioning import make_partitioner
    from t5x_lite.training.optimizers import adamw
    from t5x_lite.training.schedules import learning_rate
    from t5x_lite.training.state import init_state
    from t5x_lite.training.step import make_train_step

    model = T5Config(**json.loads(Path(folder, "case.json").read_text())["model"] | {"dtype": dtype})
    rate, partitioner = learning_rate("constant", base_learning_rate=1e-3), make_partitioner()
    tx = adamw(rate)
    step = make_train_step(model, tx, partitioner, learning_rate=rate)
    batch = dict(np.load(Path(folder, "batch.npz")))
    with partitioner.context():
        state = init_state(model, tx, jax.random.key(0), partitioner)

    def train() -> Any:
        nonlocal state
        with partitioner.context():
            state, metrics = step(state, partitioner.global_batch(batch), {})
        return state, metrics

    return _asked_of_jax(train)


def _t5x_style(folder: str):
    """With the memory allocator as it comes, since T5X sets nothing."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import optax

    from benchmarks import t5x_style
    from t5x_lite.model import T5Config, init_params

    model = T5Config(**json.loads(Path(folder, "case.json").read_text())["model"] | {"scan_layers": False})
    tx = optax.adamw(1e-3, b2=0.98, weight_decay=0.0)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    state = params, tx.init(params)
    del params  # it is donated with the state
    step = t5x_style.make_train_step(model, tx)
    batch = dict(np.load(Path(folder, "batch.npz")))

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return _asked_of_jax(train)


def _asked_of_jax(train: Callable[[], Any]) -> Callable[[str], None]:
    """An engine's answer to what it is asked: one step of `train`, or a product."""
    import jax
    import jax.numpy as jnp

    side = jnp.ones((_SIDE, _SIDE))
    product = jax.jit(jnp.dot)
    return lambda what: jax.block_until_ready(product(side, side) if what == _PRODUCT else train())


def _torch(folder: str, autocast: bool = False):
    import torch
    import transformers

    torch.set_num_threads(_CORES)
    settings = json.loads(Path(folder, "case.json").read_text())["theirs"]
    model = transformers.T5ForConditionalGeneration(transformers.T5Config.from_dict(settings)).train()
    if not settings["tie_word_embeddings"]:  # transformers 5 ties every T5
        head = torch.randn(settings["vocab_size"], settings["d_model"]) * settings["d_model"] ** -0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    padded = np.load(Path(folder, "padded.npz"))
    inputs, targets = (torch.tensor(padded[part].astype(np.int64)) for part in ("inputs", "targets"))
    batch = {"input_ids": inputs, "attention_mask": inputs > 0, "labels": targets.masked_fill(targets == 0, -100)}
    if bool((inputs > 0).all()):
        del batch["attention_mask"]  # it would cost, and masks nothing
    side = torch.ones(_SIDE, _SIDE)

    def run(what: str) -> None:
        if what == _PRODUCT:
            with torch.inference_mode():
                side @ side
            return
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _torch_bfloat16(folder: str):
    return _torch(folder, autocast=True)


def _t5x_lite_bfloat16(folder: str):
    return _t5x_lite(folder, "bfloat16")


ENGINES = {
    "t5x_lite": _t5x_lite,
    "t5x_lite bfloat16": _t5x_lite_bfloat16,
    "T5X-style": _t5x_style,
    "transformers": _torch,
    "transformers bfloat16": _torch_bfloat16,
}


if __name__ == "__main__":
    config.run_door(main)
