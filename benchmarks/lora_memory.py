"""What the compiler says a training step of Flan-T5 XL needs on each device: all weights, a part, or adapters only.

python benchmarks/lora_memory.py [--size=xl] [--devices=8]

Nothing runs and no weight exists: the step is compiled for virtual CPU devices with parameters, optimizer and batch
sharded (ZeRO-3), bfloat16 compute, layers scanned and recomputed, and XLA's memory analysis is read.
"""

import dataclasses
import os

from t5x_lite import config

_BATCH, _INPUTS, _TARGETS = 8, 512, 128


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--size", default="xl", help="of Flan-T5: small, base, large, xl, xxl")
        parser.add_argument("--devices", type=int, default=8)

    args = config.parse_flags(argv, __doc__, flags)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    from t5x_lite.model import Lora
    from t5x_lite.training.trainable import ADAPTERS_ONLY

    config.load([f"gin/models/flan_t5_{args.size}.gin"])
    model = dataclasses.replace(config.build("T5Config"), dtype="bfloat16", scan_layers=True, remat="full")
    adapted = dataclasses.replace(model, lora=Lora())
    decoder = ((r"decoder/.*", True), (".*", False))
    runs = {
        "all weights, AdamW": (model, ()),
        "decoder only, AdamW": (model, decoder),
        "LoRA rank 8, AdamW": (adapted, ADAPTERS_ONLY),
        "LoRA rank 8, AdamW, base in bfloat16": (dataclasses.replace(adapted, param_dtype="bfloat16"), ADAPTERS_ONLY),
    }
    print(f"flan_t5_{args.size}, {args.devices} devices, batch {_BATCH} x ({_INPUTS} + {_TARGETS}); GB a device")
    print(f"{'trained':40}{'trained M':>10}{'arguments':>11}{'temporary':>11}{'peak':>8}{'checkpoint':>12}")
    for name, (run_model, rules) in runs.items():
        print(f"{name:40}" + _analysed(run_model, rules), flush=True)


def _analysed(model, rules) -> str:
    import jax
    import jax.numpy as jnp
    import optax

    from t5x_lite import partitioning
    from t5x_lite.training.state import abstract_frozen, abstract_state
    from t5x_lite.training.step import make_train_step

    sharded = (("batch", ("data", "fsdp")), ("embed", "fsdp"), ("vocab", "fsdp"), ("mlp", "fsdp"))
    partitioner = partitioning.make_partitioner({"fsdp": -1}, sharded)
    tx = optax.adamw(1e-4)
    step = make_train_step(model, tx, partitioner, learning_rate=optax.constant_schedule(1e-4), trainable=rules)
    shapes = {
        "encoder_input_tokens": _INPUTS,
        "decoder_input_tokens": _TARGETS,
        "decoder_target_tokens": _TARGETS,
        "decoder_loss_weights": _TARGETS,
    }
    batch = {
        name: jax.ShapeDtypeStruct((_BATCH, length), jnp.int32, sharding=partitioner.batch_sharding)
        for name, length in shapes.items()
    }
    state = abstract_state(model, tx, partitioner, rules)
    with partitioner.context():
        compiled = step.lower(state, batch, abstract_frozen(model, partitioner, rules)).compile()
    found = compiled.memory_analysis()
    arguments, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
    peak = arguments + temporary + found.output_size_in_bytes - found.alias_size_in_bytes
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    saved = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    numbers = (arguments, temporary, peak)
    gigabytes = "".join(f"{size / 1e9:{width}.2f}" for size, width in zip(numbers, (11, 11, 8), strict=True))
    return f"{trained / 1e6:10.1f}{gigabytes}{saved / 1e9:12.3f}"


if __name__ == "__main__":
    config.run_door(main)
