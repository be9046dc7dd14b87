"""Writes docs/plan_table.md: Flan-T5 of every size on TPU slices of 8 to 256 chips and on GPUs, by `plan --search`.

python benchmarks/plan_table.py
python benchmarks/plan_table.py --prove xxl@v5p:4x4x4 xxl@v5e:16x16

Every row is by formula, seconds each. `--prove` compiles rows first (minutes each, libtpu, no TPU) and keeps what the
compiler said in benchmarks/plans.json, from which the table takes it.
"""

import functools
import json
import os
import platform
from importlib import metadata
from pathlib import Path

from t5x_lite import config
from t5x_lite.errors import UserError

_SIZES = ("small", "base", "large", "xl", "xxl")
_KINDS = ("v4", "v5e", "v5p", "v6e")
_CHIPS = (8, 16, 32, 64, 128, 256)
_GPUS = ("a100:8", "h100:8", "h200:8", "b200:8")
_PROVED = Path("benchmarks/plans.json")
_GIB = 2**30


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--prove", nargs="*", default=[], metavar="SIZE@TOPOLOGY", help="rows to compile")

    args = config.parse_flags(argv, __doc__, flags)
    os.environ["JAX_PLATFORMS"] = "cpu"
    proved = json.loads(_PROVED.read_text()) if _PROVED.exists() else {}
    for name in args.prove:
        proved[name] = _prove(*name.split("@"))
        _PROVED.write_text(json.dumps(proved, indent=1, sort_keys=True) + "\n")
    Path("docs/plan_table.md").write_text(_table(proved))


def _asked(size: str, topology):
    from t5x_lite.planning.request import make_request

    return make_request(_settings(size), topology, mesh_shape=None)


@functools.cache
def _settings(size: str):
    """The same objects for every slice: by them the layouts of a mesh are found again."""
    config.load(["gin/plan.gin", f"gin/models/flan_t5_{size}.gin"])
    return config.build("plan")


def _prove(size: str, name: str) -> dict:
    """What the compiler says of the best row by formula."""
    from t5x_lite.planning import compiled, search, topology
    from t5x_lite.planning.estimate import roofline

    best = search.ranked(_asked(size, topology.parse(name)))[0].request
    print(f"{size} on {name}: {search.describe(best)}", flush=True)
    program = compiled.train_step(best, best.partitioner(best.topology.devices()))
    said = {"settings": search.describe(best), "seconds": round(program.seconds)}
    said["versions"] = f"jax {metadata.version('jax')}, libtpu {metadata.version('libtpu')}, {platform.machine()}"
    if program.memory is None:
        return said | {"gib": None}
    time = roofline(best, program.traffic)
    return said | {
        "gib": round(program.memory.total / _GIB, 2),
        "ms": round(time.step * 1e3, 1),
        "mfu": round(time.mfu, 3),
    }


def _table(proved: dict) -> str:
    from t5x_lite.devices import KINDS
    from t5x_lite.planning.topology import Topology, slice_shape

    head = (
        "| model | devices | mesh (data x fsdp x model) | remat | microbatches | GiB a device | step | MFU | compiler |"
    )
    lines = [_HEAD.strip(), "", head, "|" + "---|" * 9]
    for size in _SIZES:
        for kind in _KINDS:
            for chips in _CHIPS:
                shape = slice_shape(KINDS[kind], chips)
                sides = tuple(map(int, shape.split("x")))
                lines.append(_row(size, Topology(f"{kind}:{shape}", sides, 1, KINDS[kind]), proved))
        for name in _GPUS:
            kind, count = name.split(":")
            lines.append(_row(size, Topology(name, (int(count),), 1, KINDS[kind]), proved))
    return "\n".join(lines) + "\n"


def _row(size: str, topology, proved: dict) -> str:
    from t5x_lite.planning.search import describe, ranked

    room = f"{topology.kind.memory / _GIB:.1f}"
    request = _asked(size, topology)
    try:
        best = ranked(request)[0]
    except UserError as error:  # nothing fits
        return f"| {size} | {topology.name} | {str(error).split('; ')[1]} | | | of {room} | | | |"
    request, time = best.request, best.time
    mesh = " x ".join(map(str, request.mesh))
    said = proved.get(f"{size}@{topology.name}")
    by_compiler = ""
    if said and said["settings"] == describe(request):  # else of what another formula ranked first
        by_compiler = f"{said['gib']} GiB, {said['ms']} ms, MFU {said['mfu']:.0%}" if said["gib"] else "does not fit"
    return (
        f"| {size} | {topology.name} | {mesh} | {request.model.remat} | {request.microbatches} | "
        f"{best.estimate.total / _GIB:.1f} of {room} | {time.step * 1e3:.0f} ms | {time.mfu:.0%} | {by_compiler} |"
    )


_HEAD = """
# Plans for Flan-T5

Written by `python benchmarks/plan_table.py`: for each model and slice the settings that `python -m t5x_lite.plan
--search` ranks first, Adafactor, bfloat16 compute, scanned layers, rows of 512 + 128 tokens, 16 of them a device and
step. Memory, step time and MFU are by formula, with none of the communication hidden; [scaling.md](scaling.md) says how
far formula and compiler are apart. The last column is the compiler's word on the same settings, for the rows that were
compiled (`--prove`); of the others nothing is proved.
"""


if __name__ == "__main__":
    config.run_door(main)
