"""Trains on TPU slices of a GKE cluster, as a JobSet: docs/tpu.md.

python launch/gke.py --name=xl --image=REGISTRY/t5x_lite_train --tpu=v5e --topology=4x4 [--slices=2] [--spot]
    [--service_account=NAME] [--restarts=50] [--dry_run] -- --gin_file=FILE --gin.MODEL_DIR=gs://BUCKET/RUN

Applies the manifest with kubectl; --dry_run prints it. When a host is lost, all start again, from the last checkpoint.
"""

import json
import math
import re
import subprocess
from typing import Any

from t5x_lite.doors import parse_flags, run_door
from t5x_lite.errors import UserError, nearest

# GKE's name of each kind, and the dimensions of its topologies:
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
_KINDS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}


def main(argv: list[str]) -> None:
    at = argv.index("--") if "--" in argv else len(argv)

    def flags(parser):
        parser.add_argument("--name", required=True)
        parser.add_argument("--image", required=True, help="of launch/Dockerfile, target train")
        parser.add_argument("--tpu", required=True, help=", ".join(_KINDS))
        parser.add_argument("--topology", required=True, help="of one slice, like 4x4 or 2x2x4")
        parser.add_argument("--slices", type=int, default=1)
        parser.add_argument("--spot", action="store_true")
        parser.add_argument("--service_account", default="default", help="of Kubernetes; it may use the bucket")
        parser.add_argument("--restarts", type=int, default=50)
        parser.add_argument("--dry_run", action="store_true", help="print the manifest and apply nothing")

    asked = vars(parse_flags(argv[:at], __doc__, flags))
    dry_run = asked.pop("dry_run")
    text = json.dumps(manifest(arguments=argv[at + 1 :], **asked), indent=2)
    if dry_run:
        print(text)
    else:
        apply(text)


def manifest(
    *,
    name: str,
    image: str,
    tpu: str,
    topology: str,
    slices: int,
    spot: bool,
    service_account: str,
    restarts: int,
    arguments: list[str],
) -> dict[str, Any]:
    """The JobSet. Raises UserError for what GKE would refuse, or would accept and lose the run by."""
    if tpu not in _KINDS:
        raise UserError(f"--tpu: no TPU {tpu!r}{nearest(tpu, _KINDS)}; there are {', '.join(_KINDS)}")
    accelerator, dimensions = _KINDS[tpu]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology) or topology.count("x") + 1 != dimensions:
        example = "4x4" if dimensions == 2 else "2x2x4"
        raise UserError(f"--topology is {topology!r}; of {tpu} it has {dimensions} numbers, like {example}")
    if not any(re.fullmatch(r"--gin\.MODEL_DIR=['\"]?gs://.+", argument) for argument in arguments):
        raise UserError(
            "MODEL_DIR is not in a bucket, and a pod's files end with it; add --gin.MODEL_DIR=gs://BUCKET/RUN"
        )
    chips = math.prod(map(int, topology.split("x")))
    # Up to 2x4 in one host, as the machine type ct5lp-hightpu-8t has it (a pool of two ct5lp-hightpu-4t is the other
    # way that GKE knows for 2x4); above, four chips a host.
    chips_of_host = chips if dimensions == 2 and chips <= 8 else 4
    if chips % chips_of_host:
        raise UserError(f"--topology is {topology!r}, {chips} chip(s); it must fill hosts of {chips_of_host} chips")
    hosts = chips // chips_of_host
    if slices < 1 or (slices > 1 and hosts == 1):
        raise UserError(
            f"--slices is {slices}; slices of one host ({topology}) cannot be joined, take a larger --topology"
        )
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": service_account,
        # SIGTERM: the step under way, and a checkpoint. A spot node gives less and says so to nobody.
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
            **({"cloud.google.com/gke-spot": "true"} if spot else {}),
        },
        "containers": [
            {
                "name": "train",
                "image": image,
                "args": arguments,
                # Of the TPU's runtime among hosts, and of JAX's and the slices' coordinators.
                "ports": [{"containerPort": port} for port in (8471, 8482, 8080)],
                "resources": {"limits": {"google.com/tpu": chips_of_host}},
            }
        ],
    }
    if slices > 1:  # slices speak over the hosts' own network
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # one host that fails ends all, which JobSet then starts again together
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            # A slice is a node pool: no job may be spread over two.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts},
            # GKE tells the pods of one another (TPU_WORKER_HOSTNAMES), and of the other slices (MEGASCALE_*).
            "replicatedJobs": [{"name": "slice", "replicas": slices, "template": {"spec": job}}],
        },
    }


def apply(text: str) -> None:
    """Hands the manifest to kubectl. Raises UserError, in one line, where that refuses it."""
    try:
        done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("no kubectl here; gcloud components install kubectl gke-gcloud-auth-plugin") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        hint = (
            "; install JobSet: https://jobset.sigs.k8s.io/docs/installation"
            if "no matches for kind" in done.stderr
            else ""
        )
        raise UserError(f"kubectl: {said[0]}{hint}")
    print(done.stdout, end="")


if __name__ == "__main__":
    run_door(main)
