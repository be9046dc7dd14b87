"""Says, before there are any devices, whether a run fits on them, what it moves, and how fast it can be.

python -m t5x_lite.plan --gin_file=gin/models/flan_t5_xxl.gin --topology=v5p:4x4x4
python -m t5x_lite.plan --gin_file=gin/models/flan_t5_xl.gin --topology=v5e:4x4 --search

--topology: v4, v5e, v5p, v6e with the shape of a slice (2*v5e:16x16 for two slices), a100, h100, h200, b200 or cpu with
a number. TPUs are compiled for by libtpu (pip install 't5x_lite[tpu]'), no TPU is needed; GPUs are planned by formula.
The gin files may be a model's alone, or a run's; what they leave open is in gin/plan.gin.
"""

import argparse
import os
import sys
from typing import Any

from t5x_lite import config
from t5x_lite.errors import UserError


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--topology", required=True, help="like v5p:4x4x4, h100:8, cpu:8")
        parser.add_argument("--mesh", help="like data=1,fsdp=-1,model=4; default: the gin files'")
        parser.add_argument("--batch", type=int, help="rows a step; default: the gin files', else 16 a device")
        parser.add_argument("--remat", choices=("none", "minimal", "full", "offload"), help="default: the gin files'")
        parser.add_argument("--microbatches", type=int)
        parser.add_argument("--search", action="store_true", help="find the fastest mesh, remat and microbatches")
        parser.add_argument("--report", metavar="FILE", help=".html: the same with a memory bar and the sharding table")

    # A search lays out by these rules, whatever the files say.
    searched = ["--gin_file=gin/meshes/fsdp_model.gin"] if "--search" in argv else []
    os.environ["JAX_PLATFORMS"] = "cpu"
    args = config.parse(["--gin_file=gin/plan.gin", *argv, *searched], __doc__, flags)
    if len(args.gin_file) == 1 + len(searched):
        raise UserError("command line: --gin_file is missing; name a model's, like gin/models/flan_t5_base.gin")
    print(planned(args))


def planned(args: argparse.Namespace) -> str:
    """The text that the door prints."""
    from t5x_lite.planning import plan, report, request, topology
    from t5x_lite.run_folder import check_folder_of

    given = [flag for flag in ("mesh", "remat", "microbatches") if getattr(args, flag) is not None]
    if args.search and given:
        raise UserError(f"--{given[0]} is what --search finds; leave one of the two out")
    if args.report:
        check_folder_of("--report", args.report)
    devices = topology.parse(args.topology)
    if devices.kind is None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices.size}"
    settings: Any = config.build("plan")
    if args.search:
        mesh = None
    elif args.mesh is not None:
        mesh = request.parse_mesh(args.mesh)
    else:
        mesh = config.value("Partitioner.mesh_shape") or {"data": -1}
    asked = request.make_request(
        settings, devices, mesh_shape=mesh, batch=args.batch, remat=args.remat, microbatches=args.microbatches
    )
    found = plan.make_plan(asked, search=args.search, say=lambda line: print(line, file=sys.stderr, flush=True))
    if args.report:
        report.write(args.report, found)
    return report.text(found)


if __name__ == "__main__":
    config.run_door(main)
