"""skypilot.yaml: what it runs must be there; SkyPilot itself is not installed here."""

import subprocess
from pathlib import Path

import yaml

TASK = yaml.safe_load(Path("launch/skypilot.yaml").read_text())


def test_it_asks_for_a_spot_slice_whose_runtime_is_of_its_kind():
    resources = TASK["resources"]
    assert resources["use_spot"] and resources["infra"] == "gcp"
    kind = resources["accelerators"].removeprefix("tpu-")
    create = ["bash", "launch/tpu_vm.sh", "create", "--name=x", "--zone=z", f"--type={kind}", "--dry_run"]
    printed = subprocess.run(create, capture_output=True, text=True, check=True).stdout
    assert f"--version={resources['accelerator_args']['runtime_version']} " in printed


def test_its_commands_are_those_of_the_worker_and_its_files_are_there():
    assert Path(TASK["envs"]["GIN_FILE"]).is_file()
    for step, command in (("setup", "setup"), ("run", "train")):
        program, script, given, *arguments = TASK[step].split()
        assert (program, given) == ("bash", command)
        assert f"  {command} " in Path(script).read_text().split("set -euo")[0].replace("#", "")
        assert all(word.partition("=$")[2] in TASK["envs"] for word in arguments)
