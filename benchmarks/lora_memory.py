"""What the compiler says a training step of Flan-T5 XL needs on each device: all weights, a part, or adapters only.

python benchmarks/lora_memory.py [--size=xl] [--topology=v5e:2x4]

Nothing runs and no weight exists: the step is compiled with parameters, optimizer and batch sharded (ZeRO-3), bfloat16
compute, layers scanned and recomputed, and XLA's memory analysis is read. For the chips of a TPU topology (with libtpu
installed; no TPU is needed), else for 8 virtual CPU devices.
"""

import dataclasses
import os

from t5x_lite import config

_BATCH, _INPUTS, _TARGETS = 8, 512, 128


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--size", default="xl", help="of Flan-T5: small, base, large, xl, xxl")
        parser.add_argument("--topology", help="of a TPU, like v5e:2x4; default: 8 virtual CPU devices")

    args = config.parse_flags(argv, __doc__, flags)
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu would look for the TPU that it is on
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
    partitioner = _partitioner(args.topology)
    devices = f"{partitioner.mesh.size} x {partitioner.mesh.devices.flat[0].device_kind}"
    print(f"flan_t5_{args.size}, {devices}, batch {_BATCH} x ({_INPUTS} + {_TARGETS}); GB a device")
    print(f"{'trained':40}{'trained M':>10}{'arguments':>11}{'temporary':>11}{'peak':>8}{'checkpoint':>12}")
    for name, (run_model, rules) in runs.items():
        print(f"{name:40}" + _analysed(run_model, rules, partitioner), flush=True)


def _partitioner(topology: str | None):
    import jax
    from jax.experimental import topologies

    from t5x_lite.partitioning import MESH_AXES, Partitioner

    sharded = (("batch", ("data", "fsdp")), ("embed", ("fsdp",)), ("vocab", ("fsdp",)), ("mlp", ("fsdp",)))
    devices = topologies.get_topology_desc(topology, platform="tpu").devices if topology else jax.devices()
    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return Partitioner(jax.make_mesh((1, len(devices), 1), MESH_AXES, axis_types=auto, devices=devices), sharded)


def _analysed(model, rules, partitioner) -> str:
    import jax
    import jax.numpy as jnp
    import optax

    from t5x_lite.training.state import abstract_frozen, abstract_state
    from t5x_lite.training.step import make_train_step

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
