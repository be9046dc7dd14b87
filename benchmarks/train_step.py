"""One training step against PyTorch's in one call, on CPU: AdamW, no dropout, random weights and tokens.

python -m benchmarks.train_step [--size=small] [--rows=8] [--inputs=512] [--targets=128] [--rounds=5]

transformers' T5 with PyTorch in float32 and under bfloat16 autocast. Every engine is a process of its own on the same
cores, and they take turns. The bound is the step's FLOPs over what a matrix product of 4096 x 4096 reaches here, in the
fastest of the engines. Quote the ratios, not the seconds.
"""

import dataclasses
import os
import statistics

from benchmarks.engines import Engine, in_turns, table_row
from t5x_lite import config

_CORES = len(os.sched_getaffinity(0))
_STEP, _PRODUCT = "step", "product"
_SIDE = 4096


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--size", choices=("small", "base"), default="small")
        parser.add_argument("--rows", type=int, default=8)
        parser.add_argument("--inputs", type=int, default=512)
        parser.add_argument("--targets", type=int, default=128)
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--engine", action="append", choices=list(ENGINES), help="default: all")

    args = config.parse_flags(argv, __doc__, flags)
    from t5x_lite.interop.hugging_face import write_config
    from t5x_lite.model.flops import train_flops

    shape = args.rows, args.inputs, args.targets
    theirs = write_config(_model(args.size), "float32", {}) | {"dropout_rate": 0.0}
    chosen = {name: ENGINES[name] for name in args.engine or ENGINES}
    engines = {
        name: Engine(make, theirs if name.startswith("transformers") else args.size, shape)
        for name, make in chosen.items()
    }
    steps = in_turns(engines, args.rounds, _STEP)
    peaks = {name: engine.peak_bytes() for name, engine in engines.items()}
    products = in_turns(engines, args.rounds, _PRODUCT)
    for engine in engines.values():
        engine.close()

    print(f"T5 v1.1 {args.size}, {args.rows} x ({args.inputs} + {args.targets}), {_CORES} cores, median (least)")
    print(f"{'':20}" + "".join(f"{name:>26}" for name in engines))
    print(table_row("step, s", steps))
    print(f"{'peak memory, GB':20}" + "".join(f"{peak / 1e9:26.2f}" for peak in peaks.values()))
    fastest = min(map(min, products.values()))  # float32 in every engine
    flops = args.rows * train_flops(_model(args.size), args.inputs, args.targets)
    bound = flops * fastest / (2 * _SIDE**3)
    ours = statistics.median(next(iter(steps.values())))
    print(f"float32 matrix product {2e-9 * _SIDE**3 / fastest:.0f} GFLOP/s: bound {bound:.2f} s, x{ours / bound:.2f}")


def _model(size: str, dtype: str = "float32"):
    config.load([f"gin/models/flan_t5_{size}.gin"])
    return dataclasses.replace(config.build("T5Config"), dtype=dtype, dropout_rate=0.0)


def _tokens(shape: tuple[int, int, int]):
    import numpy as np

    rows, inputs, targets = shape
    rng = np.random.default_rng(0)
    return rng.integers(3, 32000, (rows, inputs)), rng.integers(3, 32000, (rows, targets))


def _t5x_lite(size: str, shape: tuple[int, int, int], dtype: str = "float32"):
    from t5x_lite import host

    os.environ["JAX_PLATFORMS"] = "cpu"
    host.keep_freed_memory()  # as `python -m t5x_lite.train` does
    import jax
    import jax.numpy as jnp
    import numpy as np

    from t5x_lite.partitioning import make_partitioner
    from t5x_lite.training.optimizers import adamw
    from t5x_lite.training.schedules import learning_rate
    from t5x_lite.training.state import init_state
    from t5x_lite.training.step import make_train_step

    model, rate, partitioner = (
        _model(size, dtype),
        learning_rate("constant", base_learning_rate=1e-3),
        make_partitioner(),
    )
    tx = adamw(rate, clip_norm=None)
    step = make_train_step(model, tx, partitioner, learning_rate=rate)
    inputs, targets = (x.astype(np.int32) for x in _tokens(shape))
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
    }
    with partitioner.context():
        state = init_state(model, tx, jax.random.key(0), partitioner)
    side = jnp.ones((_SIDE, _SIDE))
    product = jax.jit(jnp.dot)

    def run(what: str) -> None:
        nonlocal state
        if what == _PRODUCT:
            product(side, side).block_until_ready()
            return
        with partitioner.context():
            state, metrics = step(state, partitioner.global_batch(batch), {})
            jax.block_until_ready((state, metrics))

    return run


def _torch(settings: dict, shape: tuple[int, int, int], autocast: bool = False):
    import torch
    import transformers

    torch.set_num_threads(_CORES)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config.from_dict(settings)).train()
    head = torch.randn(settings["vocab_size"], settings["d_model"]) * settings["d_model"] ** -0.5
    model.lm_head.weight = torch.nn.Parameter(head)  # transformers 5 ties every T5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = map(torch.tensor, _tokens(shape))
    side = torch.ones(_SIDE, _SIDE)

    def run(what: str) -> None:
        if what == _PRODUCT:
            with torch.inference_mode():
                side @ side
            return
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=inputs, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _torch_bfloat16(settings: dict, shape: tuple[int, int, int]):
    return _torch(settings, shape, autocast=True)


def _t5x_lite_bfloat16(size: str, shape: tuple[int, int, int]):
    return _t5x_lite(size, shape, "bfloat16")


ENGINES = {
    "t5x_lite": _t5x_lite,
    "t5x_lite bfloat16": _t5x_lite_bfloat16,
    "transformers": _torch,
    "transformers bfloat16": _torch_bfloat16,
}


if __name__ == "__main__":
    config.run_door(main)
