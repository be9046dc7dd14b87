"""Loading a Hugging Face checkpoint: our streaming reader against transformers' own, time and peak host memory.

python benchmarks/load.py [--size=large] [--devices=1]

Writes a random checkpoint of the size as safetensors. Each reader, in a process of its own and in turn, loads it from
the page cache and sums every weight once, since transformers maps files into memory and reads nothing until then.
Memory is the peak resident size above what the process had before, as the kernel counts it. Memory that a virtual
machine has given back to its host is slow to get again, for whoever comes first; so each process takes and frees as
much before its clock starts.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from t5x_lite import config

_ROUNDS = 3

_MEASURE = """
import json, os, re, resource, sys, threading, time
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def measured(load):
    import numpy as np
    for _ in range(2):
        blocks = [np.ones(2**22) for _ in range(int(sys.argv[2]) // 2**25 + 8)]
        del blocks
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before, began = memory("VmRSS"), time.perf_counter()
    loaded = load()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before, "kept": memory("VmRSS") - before}))
    return loaded
"""

_OURS = """
import jax, numpy as np
from t5x_lite import interop, partitioning
rules = (("batch", ("data", "fsdp")), ("embed", "fsdp"), ("vocab", "fsdp"), ("mlp", "fsdp"))
partitioner = partitioning.make_partitioner({"fsdp": -1}, rules)
jax.block_until_ready(jax.device_put(0, partitioner.replicated))
def load():
    source = interop.open_source(sys.argv[1])
    params = jax.block_until_ready(interop.load_model(source, source.config, partitioner))
    sum(float(np.asarray(shard.data).sum()) for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    return params
measured(load)
"""

_THEIRS = """
import torch, transformers
transformers.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
def load():
    model = transformers.T5ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32)
    sum(float(weight.detach().numpy().sum()) for weight in model.parameters())
    return model
measured(load)
"""

_WRITE = """
import sys, jax, dataclasses
from pathlib import Path
from t5x_lite import config, interop
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.model import init_params
from t5x_lite.interop import conversion
import numpy as np
config.load([f"gin/models/flan_t5_{sys.argv[2]}.gin"])
model = config.build("T5Config")
class Random(interop.Source):
    where, hugging_face, config, dtype = "random", {}, model, "float32"
    def vocabulary(self): return vocabularies.byte()
    def load(self, wanted):
        draw = np.random.default_rng(0)
        return {t: jax.numpy.asarray(draw.standard_normal(leaf.shape, np.float32)) for t, (_, leaf) in wanted.items()}
interop.convert(Random(), sys.argv[1] + "/model", vocabulary=vocabularies.byte(), format="hf")
"""


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--size", default="large", help="of Flan-T5: small, base, large, xl")
        parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices that our reader shards over")

    args = config.parse_flags(argv, __doc__, flags)
    with tempfile.TemporaryDirectory() as folder:
        _run(_WRITE, folder, args.size)
        size = str(sum(path.stat().st_size for path in Path(folder).glob("model/*.safetensors")))
        rounds = [
            {
                "t5x_lite": _run(_MEASURE + _OURS, f"{folder}/model", size, devices=args.devices),
                "transformers": _run(_MEASURE + _THEIRS, f"{folder}/model", size),
            }
            for _ in range(_ROUNDS)
        ]
    print(f"flan_t5_{args.size}, float32, median of {_ROUNDS}; {args.devices} device(s) for t5x_lite")
    medians = {}
    for reader in ("t5x_lite", "transformers"):
        results = [json.loads(found[reader]) for found in rounds]
        medians[reader] = {key: statistics.median(result[key] for result in results) for key in results[0]}
        seconds, peak, kept = (medians[reader][key] for key in ("seconds", "peak", "kept"))
        print(f"{reader:14}{seconds:8.2f} s   peak {peak / 1e9:6.2f} GB   kept {kept / 1e9:6.2f} GB")
    ours, theirs = medians["t5x_lite"], medians["transformers"]
    ratios = {key: ours[key] / theirs[key] for key in ("seconds", "peak")}
    print(f"ratio         {ratios['seconds']:8.2f}     peak {ratios['peak']:6.2f}")


def _run(program: str, *arguments: str, devices: int = 1) -> str:
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = ["env", f"XLA_FLAGS={flags}", "JAX_PLATFORMS=cpu", sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return (done.stdout.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    config.run_door(main)
