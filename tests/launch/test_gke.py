"""gke.py: the JobSet that GKE is asked for, and what is said when it cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = ["--", "--gin_file=gin/qa.gin", "--gin.MODEL_DIR=gs://bucket/run"]
NAMES = ["--name=xl", "--image=registry/t5x_lite_train"]
# Stands in for kubectl: keeps what it is given, and answers as $ANSWER says.
KUBECTL = """#!/bin/sh
echo "$*" >> "$FAKE/calls"
/bin/cat > "$FAKE/applied"
[ -z "$ANSWER" ] || { echo "$ANSWER" >&2; exit 1; }
"""


@pytest.fixture
def gke(tmp_path):
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)

    def run(*arguments: str, status: int = 0, answer: str = "", path: Path = tmp_path) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "launch/gke.py", *arguments],
            env={**os.environ, "PATH": str(path), "PYTHONPATH": ".", "FAKE": str(tmp_path)} | {"ANSWER": answer},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def parts(manifest: dict) -> tuple[dict, dict, dict]:
    """The replicated job, the job, and the pod."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated, job, job["template"]["spec"]


def test_a_slice_is_one_job_with_a_pod_on_every_host(gke, tmp_path):
    gke(*NAMES, "--tpu=v5e", "--topology=4x4", *MODEL)
    assert (tmp_path / "calls").read_text() == "apply -f -\n"
    manifest = json.loads((tmp_path / "applied").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "xl"
    assert manifest["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    replicated, job, pod = parts(manifest)
    assert replicated["replicas"] == 1
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert pod["restartPolicy"] == "Never" and "hostNetwork" not in pod
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["args"] == MODEL[1:] and container["image"] == "registry/t5x_lite_train"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    "tpu, topology, hosts, chips, accelerator",
    [
        ("v5e", "2x2", 1, 4, "tpu-v5-lite-podslice"),
        ("v5e", "2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e", "16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v6e", "4x8", 8, 4, "tpu-v6e-slice"),
        ("v5p", "2x2x1", 1, 4, "tpu-v5p-slice"),
        ("v4", "2x2x4", 4, 4, "tpu-v4-podslice"),
    ],
)
def test_hosts_and_chips_follow_the_topology(gke, tpu, topology, hosts, chips, accelerator):
    done = gke(*NAMES, f"--tpu={tpu}", f"--topology={topology}", "--dry_run", *MODEL)
    _, job, pod = parts(json.loads(done.stdout))
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator


def test_slices_spot_and_the_account(gke):
    more = ["--slices=2", "--spot", "--service_account=trainer", "--restarts=7", "--dry_run"]
    manifest = json.loads(gke(*NAMES, "--tpu=v6e", "--topology=4x4", *more, *MODEL).stdout)
    replicated, _, pod = parts(manifest)
    assert replicated["replicas"] == 2 and manifest["spec"]["failurePolicy"] == {"maxRestarts": 7}
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "trainer"


def test_a_dry_run_calls_nothing(gke, tmp_path):
    gke(*NAMES, "--tpu=v5e", "--topology=4x4", "--dry_run", *MODEL)
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--tpu=v5", "--topology=4x4", *MODEL], "--tpu: no TPU 'v5'; nearest: 'v5"),
        (["--tpu=v5e", "--topology=2x2x4", *MODEL], "--topology is '2x2x4'; of v5e it has 2 numbers, like 4x4"),
        (["--tpu=v5p", "--topology=4x4", *MODEL], "--topology is '4x4'; of v5p it has 3 numbers, like 2x2x4"),
        (["--tpu=v5e", "--topology=0x4", *MODEL], "--topology is '0x4'; of v5e it has 2 numbers, like 4x4"),
        (["--tpu=v5p", "--topology=1x1x1", *MODEL], "--topology is '1x1x1', 1 chip(s); it must fill hosts of 4 chips"),
        (["--tpu=v5e", "--topology=2x4", "--slices=2", *MODEL], "slices of one host (2x4) cannot be joined"),
        (["--tpu=v5e", "--topology=4x4", "--", "--gin.MODEL_DIR=runs/qa"], "MODEL_DIR is not in a bucket"),
        (["--tpu=v5e", "--topologie=4x4", *MODEL], "no flag '--topologie'; nearest: '--topology'"),
    ],
)
def test_a_mistake_is_one_line_and_no_call(gke, tmp_path, arguments, says):
    err = gke(*NAMES, *arguments, status=2).stderr
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    "answer, says",
    [
        ('error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"', "install JobSet: https://"),
        ("The connection to the server was refused", "kubectl: The connection to the server was refused"),
    ],
)
def test_what_kubectl_refuses_is_one_line(gke, answer, says):
    err = gke(*NAMES, "--tpu=v5e", "--topology=4x4", *MODEL, status=2, answer=answer).stderr
    assert says in err and len(err.splitlines()) == 1


def test_a_machine_without_kubectl_is_told_so(gke, tmp_path):
    err = gke(*NAMES, "--tpu=v5e", "--topology=4x4", *MODEL, status=2, path=tmp_path / "nothing").stderr
    assert "no kubectl here" in err and len(err.splitlines()) == 1
