"""tpu_vm.sh and tpu_worker.sh against a gcloud that records its calls, fails when told to, and stands for the hosts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_gcloud.sh").resolve()
WHERE = ["--name=xl", "--zone=us-west4-a"]
TYPE = ["--type=v5litepod-16"]
TRAIN = ["--", "--gin_file=gin/qa.gin", "--gin.MODEL_DIR=gs://bucket/run"]
DROPPED = "255||ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."
# Of several hosts, gcloud names the one whose connection dropped, and ends with 1.
ONE_DROPPED = "1||ERROR: (gcloud.compute.tpus.tpu-vm.ssh) worker 1: [/usr/bin/ssh] exited with return code [255]."
READY, PREEMPTED, OURS = "0|READY|", "0|PREEMPTED|", "0|created-by=t5x_lite|"
MISSING = "127||bash: t5x_lite/source/launch/tpu_worker.sh: No such file or directory"
CRASHED = "1||ERROR: gcloud crashed (ConnectionError): ('Connection aborted.', RemoteDisconnected())"
GONE = "1||ERROR: (gcloud.compute.tpus.tpu-vm.ssh) Instance is not in READY state, and cannot be connected to."
ABSENT = "1||ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource 'projects/p/nodes/xl' was not found"


class Cloud:
    """The fake's folder, and the script run against it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("bin/gcloud", "host_bin/curl", "host_bin/python3"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(FAKE)

    def answers(self, verb: str, *lines: str) -> None:
        (self.folder / verb).write_text("".join(f"{line}\n" for line in lines))

    def tpu_vm(self, *arguments: str, status: int = 0, checkout: Path | None = None) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["bash", "launch/tpu_vm.sh", *arguments],
            cwd=checkout,
            env=os.environ
            | {"FAKE": str(self.folder), "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
            | {"TPU_VM_RETRY_SECONDS": "0", "TPU_VM_WATCH_SECONDS": "0"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    @property
    def calls(self) -> list[str]:
        """What gcloud compute tpus tpu-vm was called with, without what all calls have."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        ends = (" --zone=us-west4-a", " --quiet")
        assert all(line.startswith("compute tpus tpu-vm ") and all(end in line for end in ends) for line in lines)
        return [line.removeprefix("compute tpus tpu-vm ").replace(ends[0], "").replace(ends[1], "") for line in lines]

    @property
    def verbs(self) -> list[str]:
        return [call.split()[0] for call in self.calls]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


SETUP = ["ssh", "scp", "ssh", "ssh"]


def test_create_asks_for_the_type_with_its_runtime_and_a_label(cloud):
    cloud.tpu_vm("create", *WHERE, *TYPE, "--spot", "--project=mine")
    (call,) = cloud.calls
    assert call == (
        "create xl --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot --labels=created-by=t5x_lite "
        "--scopes=https://www.googleapis.com/auth/cloud-platform --project=mine"
    )


@pytest.mark.parametrize(
    "type, runtime",
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_the_runtime_follows_the_type(cloud, type, runtime):
    cloud.tpu_vm("create", *WHERE, f"--type={type}")
    assert f"--version={runtime} " in cloud.calls[0] and "--spot" not in cloud.calls[0]
    cloud.tpu_vm("create", *WHERE, f"--type={type}", "--runtime=other")
    assert "--version=other " in cloud.calls[1]


@pytest.mark.parametrize(
    "error, status, says",
    [
        (
            "ERROR: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone",
            3,
            "xl: no quota for v5litepod-16 in us-west4-a; ask for it at",
        ),
        ('ERROR: code 8, message: There is no more capacity in the zone "us-west4-a"', 4, "xl: no capacity for"),
        (
            "ERROR: SERVICE_DISABLED: Cloud TPU API has not been used in project 1",
            1,
            "services enable tpu.googleapis.com",
        ),
        ("ERROR: ALREADY_EXISTS: nodes/xl already exists", 1, "xl is there already; go on with setup"),
        ("ERROR: PERMISSION_DENIED: tpu.nodes.create", 1, "xl: ERROR: PERMISSION_DENIED: tpu.nodes.create"),
    ],
)
def test_what_create_may_fail_of_is_one_line_that_says_what_to_do(cloud, error, status, says):
    cloud.answers("create", f"1||{error}")
    found = cloud.tpu_vm("create", *WHERE, *TYPE, status=status).stderr.splitlines()
    assert len(found) == 1 and says in found[0]
    assert cloud.verbs == ["create"]


@pytest.mark.parametrize("command", ["create", "setup", "run", "logs", "status", "resume", "watch", "delete"])
def test_a_dry_run_makes_no_call_and_prints_them(cloud, command):
    more = {"create": TYPE, "run": TRAIN, "resume": [*TYPE, *TRAIN], "watch": [*TYPE, *TRAIN]}
    arguments = more.get(command, [])
    at = arguments.index("--") if "--" in arguments else len(arguments)
    done = cloud.tpu_vm(command, *WHERE, *arguments[:at], "--dry_run", *arguments[at:])
    assert cloud.calls == []
    printed = [line.split()[4] for line in (done.stdout + done.stderr).splitlines() if line.startswith("gcloud ")]
    wanted = {"create": {"create"}, "run": {"ssh"}, "logs": {"ssh"}, "delete": {"delete"}, "setup": {"ssh", "scp"}}
    again = {"describe", "delete", "create", "ssh", "scp"}
    assert set(printed) == wanted.get(command, {"describe", "ssh"} if command == "status" else again)


def test_help_lists_every_command_and_flag(cloud):
    said = cloud.tpu_vm("--help").stdout
    script = Path("launch/tpu_vm.sh").read_text()
    for name in ("commands", "flags"):
        words = script.split(f"readonly {name}=(")[1].split(")")[0].split()
        assert words and all(word in said for word in words)
    assert "set -euo" not in said and "#" not in said


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["crate", *WHERE], "no command 'crate'; nearest: create"),
        ([], "no command ''; there are create setup run logs status resume watch delete"),
        (["create", *WHERE, "--tpye=v4-8"], "no flag '--tpye=v4-8'; nearest: --type"),
        (["create", *WHERE, *TYPE, "--dryrun"], "no flag '--dryrun'; nearest: --dry_run"),
        (["create", "--zone=z", *TYPE], "no --name"),
        (["create", "--name=x", *TYPE], "no --zone"),
        (["create", *WHERE], "no --type"),
        (["create", *WHERE, "--type=v9-8"], "--type=v9-8: which runtime it needs is not known here"),
        (["create", *WHERE, "--type"], "--type has no value; write --type=VALUE"),
        (["run", *WHERE, "--gin_file=gin/qa.gin"], "--gin_file=gin/qa.gin is for t5x_lite.train; write it after --"),
        (["run", *WHERE], "nothing to run"),
        (["setup", *WHERE, *TRAIN], "setup takes nothing after --"),
        (["delete", *WHERE], "delete xl? Add --yes"),
    ],
)
def test_a_mistake_is_one_line_and_no_call(cloud, arguments, says):
    found = cloud.tpu_vm(*arguments, status=2).stderr.splitlines()
    assert len(found) == 1 and found[0].startswith(f"launch/tpu_vm.sh: {says}")
    assert cloud.calls == []


def test_a_model_dir_that_the_tpu_would_take_with_it_is_refused_unless_asked_for(cloud):
    local = ["--", "--gin_file=gin/qa.gin", "--gin.MODEL_DIR=runs/qa"]
    assert "MODEL_DIR is not in a bucket" in cloud.tpu_vm("run", *WHERE, *local, status=2).stderr
    assert cloud.calls == []
    cloud.tpu_vm("run", *WHERE, "--local_model_dir", *local)
    assert cloud.verbs == ["ssh"]


# ---------------------------------------------------------------------- connections


@pytest.mark.parametrize("dropped", [DROPPED, ONE_DROPPED])
def test_a_connection_that_drops_is_tried_again(cloud, dropped):
    cloud.answers("ssh", dropped, dropped)
    done = cloud.tpu_vm("run", *WHERE, *TRAIN)
    assert cloud.verbs == ["ssh"] * 3 and len(set(cloud.calls)) == 1
    assert "the connection dropped (1 of 5)" in done.stderr and "(2 of 5)" in done.stderr


def test_a_connection_that_drops_for_ever_ends_with_one_line(cloud):
    cloud.answers("ssh", *[DROPPED] * 9)
    done = cloud.tpu_vm("run", *WHERE, *TRAIN, status=4)
    assert cloud.verbs == ["ssh"] * 5
    assert "xl: no connection, 5 times" in done.stderr.splitlines()[-1]


def test_what_fails_on_a_host_is_not_tried_again(cloud):
    cloud.answers("ssh", "1||ERROR: no space left on device")
    done = cloud.tpu_vm("setup", *WHERE, status=1)
    assert cloud.verbs == ["ssh"] and done.stderr.endswith("xl: ERROR: no space left on device\n")
    cloud.answers("ssh", MISSING)
    assert "xl: not set up; launch/tpu_vm.sh setup" in cloud.tpu_vm("run", *WHERE, *TRAIN, status=1).stderr


# ---------------------------------------------------------------------- resume, watch, delete


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "SUSPENDED"])
def test_resume_makes_a_lost_tpu_again_and_starts_the_same_command(cloud, state):
    cloud.answers("describe", f"0|{state}|", OURS)
    cloud.tpu_vm("resume", *WHERE, *TYPE, "--spot", *TRAIN)
    assert cloud.verbs == ["describe", "describe", "delete", "create", *SETUP, "ssh"]
    assert cloud.calls[-1].endswith("tpu_worker.sh start --gin_file=gin/qa.gin --gin.MODEL_DIR=gs://bucket/run")


def test_resume_makes_a_tpu_that_is_not_there_and_deletes_nothing(cloud):
    cloud.answers("describe", ABSENT)
    cloud.tpu_vm("resume", *WHERE, *TYPE, *TRAIN)
    assert cloud.verbs == ["describe", "create", *SETUP, "ssh"]


def test_resume_of_a_ready_tpu_starts_the_training_alone(cloud):
    cloud.answers("describe", READY)
    cloud.tpu_vm("resume", *WHERE, *TYPE, *TRAIN)
    assert cloud.verbs == ["describe", "ssh"]


@pytest.mark.parametrize(
    "answer, status, says",
    [
        ("0|CREATING|", 4, "xl is CREATING; try again when it is READY"),
        ("0|STOPPED|", 1, "xl was stopped by hand"),
        ("1||ERROR: You do not currently have an active account selected.", 1, "xl: its state is not known"),
    ],
)
def test_resume_changes_nothing_in_a_state_that_it_cannot_mend(cloud, answer, status, says):
    cloud.answers("describe", answer)
    assert says in cloud.tpu_vm("resume", *WHERE, *TYPE, *TRAIN, status=status).stderr
    assert cloud.verbs == ["describe"]


@pytest.mark.parametrize("labels", ["", "team=vision"])
@pytest.mark.parametrize("command", ["resume", "delete"])
def test_a_tpu_that_it_did_not_create_is_never_deleted(cloud, command, labels):
    cloud.answers("describe", *[PREEMPTED] * (command == "resume"), f"0|{labels}|")
    more = [*TYPE, *TRAIN] if command == "resume" else ["--yes"]
    assert "it is left as it is" in cloud.tpu_vm(command, *WHERE, *more, status=1).stderr
    assert set(cloud.verbs) == {"describe"}


def test_delete(cloud):
    cloud.answers("describe", OURS)
    cloud.tpu_vm("delete", *WHERE, "--yes")
    assert cloud.verbs == ["describe", "delete"]


def test_watch_makes_the_tpu_again_until_the_training_is_finished(cloud):
    cloud.answers("describe", READY, PREEMPTED, PREEMPTED, OURS, ABSENT, ABSENT, "1||ERROR: no network", READY, READY)
    # Preempted, the first time that it is made again there is no capacity.
    cloud.answers("create", "1||ERROR: There is no more capacity in the zone")
    cloud.answers("ssh", "0|running|", *["0||"] * 4, "0|running|", "0|finished|")
    done = cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN)
    assert cloud.verbs == [
        *["describe", "ssh"],  # running
        *["describe", "describe", "describe", "delete", "create"],  # no capacity
        *["describe", "describe", "create", *SETUP, "ssh"],
        "describe",  # no network
        *["describe", "ssh", "describe", "ssh"],
    ]
    assert "xl: finished" in done.stderr.splitlines()[-1]


def test_watch_sets_up_a_tpu_that_was_made_and_could_not_be_reached(cloud):
    cloud.answers("describe", READY, READY)
    cloud.answers("ssh", MISSING, *["0||"] * 4, "0|finished|")
    cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN)
    assert cloud.verbs == ["describe", "ssh", *SETUP, "ssh", "describe", "ssh"]


def test_watch_starts_a_failed_training_again_three_times_and_then_says_so(cloud):
    cloud.answers("describe", *[READY] * 9)
    cloud.answers("ssh", *["0|failed 1|", "0||"] * 9)
    done = cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN, status=1)
    assert sum("start " in call for call in cloud.calls) == 3
    assert "the training failed 1; launch/tpu_vm.sh logs says why" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "answers",
    [
        # Taken away between describe and ssh, and in the middle of setup.
        {"describe": [READY, PREEMPTED, PREEMPTED, PREEMPTED, OURS], "ssh": [GONE]},
        {"describe": [READY, PREEMPTED, PREEMPTED, PREEMPTED, OURS], "ssh": [MISSING, "0||"], "scp": [GONE]},
        # The network fails: while it is deleted; while it is made, which is done all the same or not done.
        {"describe": [PREEMPTED, PREEMPTED, OURS, *[PREEMPTED] * 3, OURS], "delete": [CRASHED]},
        {"describe": [ABSENT, ABSENT, READY, READY], "create": [CRASHED], "ssh": [MISSING]},
        {"describe": [ABSENT] * 5, "create": [CRASHED]},
    ],
)
def test_watch_goes_on_where_another_try_may_do(cloud, answers):
    for verb, lines in answers.items():
        cloud.answers(verb, *lines, *([READY] if verb == "describe" else []))
    cloud.answers("ssh", *answers.get("ssh", []), *["0||"] * 4, "0|finished|")
    done = cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN)
    assert "xl: finished" in done.stderr.splitlines()[-1]
    assert sum("start " in call for call in cloud.calls) == 1 and not (cloud.folder / "describe").read_text()


@pytest.mark.parametrize(
    "answers, verb, calls",
    [
        ({"describe": [READY] * 9, "ssh": ["1||ERROR: PERMISSION_DENIED: oslogin"] * 9}, "ssh", 4),
        ({"describe": [ABSENT] * 12, "create": ["1||ERROR: PERMISSION_DENIED: tpu.nodes.create"] * 9}, "create", 4),
    ],
)
def test_watch_ends_where_tries_do_not_help(cloud, answers, verb, calls):
    for name, lines in answers.items():
        cloud.answers(name, *lines)
    done = cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN, status=1)
    assert cloud.verbs.count(verb) == calls and "PERMISSION_DENIED" in done.stderr.splitlines()[-1]


def test_watch_counts_its_tries_from_when_the_training_ran_last(cloud):
    cloud.answers("describe", *[READY] * 20)
    cloud.answers("ssh", *[CRASHED] * 3, "0|running|", *[CRASHED] * 3, "0|finished|")
    cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN)


@pytest.mark.parametrize("some", ["failed 1\\nrunning", "running\\nfailed 1"])
def test_watch_starts_a_failed_training_when_it_has_ended_on_every_host(cloud, some):
    cloud.answers("describe", *[READY] * 9)
    cloud.answers("ssh", *[f"0|{some}|"] * 5, "0|failed 1\\nfailed 1|", "0||", "0|finished\\nfinished|")
    cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN)
    assert [number for number, call in enumerate(cloud.calls) if "start " in call] == [12]  # after six rounds of two
    assert all("--worker=all" in call for call in cloud.calls if call.startswith("ssh "))


def test_watch_ends_where_there_is_no_quota(cloud):
    cloud.answers("describe", ABSENT, ABSENT)
    cloud.answers("create", "1||ERROR: Quota limit 'TPUV5sLitepod' has been exceeded.")
    cloud.tpu_vm("watch", *WHERE, *TYPE, *TRAIN, status=3)
    assert cloud.verbs == ["describe", "describe", "create"]


# ---------------------------------------------------------------------- on the hosts


@pytest.fixture
def hosts(cloud):
    folders = [cloud.folder / "hosts" / str(number) for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
    yield folders
    for folder in folders:  # a training that the test left
        (folder / "end").write_text("0")


def log_of(host: Path, lines: int) -> list[str]:
    deadline = time.monotonic() + 20
    file = host / "t5x_lite/train.log"
    while not file.exists() or len(file.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, file.read_text() if file.exists() else "no log"
        time.sleep(0.05)
    return file.read_text().splitlines()


def test_every_host_gets_the_checkout_and_trains_as_one_of_the_processes(cloud, hosts):
    cloud.tpu_vm("setup", *WHERE)
    for host in hosts:
        for name in ("launch/tpu_worker.sh", "gin/qa.gin", "t5x_lite/train.py"):
            assert (host / "t5x_lite/source" / name).read_bytes() == Path(name).read_bytes()
    odd = "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, \"targets\": 16}"
    cloud.tpu_vm("run", *WHERE, *TRAIN, odd)
    for number, host in enumerate(hosts):
        who, what = log_of(host, 2)
        assert who == f"process {number} of 2 at 10.0.0.0:8476"
        assert what == f"<-u><-m><t5x_lite.train><{TRAIN[1]}><{TRAIN[2]}><{odd}>"


def test_a_file_that_is_gone_here_is_gone_on_the_hosts_and_a_run_there_stays(cloud, hosts, tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("launch/tpu_vm.sh", "launch/tpu_worker.sh", "pyproject.toml", "requirements.lock"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(Path(name).read_bytes())
    (checkout / "tasks").mkdir()
    (checkout / "tasks/old.py").write_text("old = True\n")

    def git(*arguments: str) -> None:
        me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
        subprocess.run(["git", *me, *arguments], cwd=checkout, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "--message=first")
    cloud.tpu_vm("setup", *WHERE, checkout=checkout)
    git("mv", "tasks/old.py", "tasks/new.py")
    for host in hosts:
        assert (host / "t5x_lite/source/tasks/old.py").exists()
        (host / "t5x_lite/source/runs").mkdir()  # of --local_model_dir
        (host / "t5x_lite/source/runs/metrics.jsonl").touch()
    cloud.tpu_vm("setup", *WHERE, checkout=checkout)
    for host in hosts:
        source = host / "t5x_lite/source"
        assert [path.name for path in (source / "tasks").iterdir()] == ["new.py"]
        assert (source / "runs/metrics.jsonl").exists() and (source / "launch/tpu_worker.sh").exists()


def test_a_connection_lost_after_the_start_does_not_start_a_second_training(cloud, hosts):
    cloud.tpu_vm("setup", *WHERE)
    cloud.answers("ssh", DROPPED)
    done = cloud.tpu_vm("run", *WHERE, *TRAIN)
    assert done.stdout.count("training started") == 2 and done.stdout.count("training runs already") == 2
    assert len(log_of(hosts[0], 2)) == 2


def test_status_says_what_each_host_does(cloud, hosts):
    cloud.answers("describe", *[READY] * 5)

    def status() -> list[str]:
        return cloud.tpu_vm("status", *WHERE).stdout.splitlines()

    cloud.tpu_vm("setup", *WHERE)
    assert status() == ["READY", "not started", "not started"]
    cloud.tpu_vm("run", *WHERE, *TRAIN)
    assert status() == ["READY", "running", "running"]
    (hosts[0] / "end").write_text("0")
    (hosts[1] / "end").write_text("7")
    for host in hosts:
        while not (host / "t5x_lite/status").exists():
            time.sleep(0.05)
    assert status() == ["READY", "finished", "failed 7"]
    # Started again, and killed with its host: nobody wrote how it ended.
    for host in hosts:
        (host / "end").unlink()
    cloud.tpu_vm("run", *WHERE, *TRAIN)
    for host in hosts:
        os.killpg(int((host / "t5x_lite/pid").read_text()), signal.SIGKILL)
    assert status() == ["READY", "failed with its host", "failed with its host"]


def test_one_host_alone_joins_nobody(cloud, hosts):
    hosts.pop().rmdir()
    cloud.tpu_vm("setup", *WHERE)
    cloud.tpu_vm("run", *WHERE, *TRAIN)
    assert log_of(hosts[0], 1)[0] == "process none of none at none"


def test_a_host_that_was_not_set_up_says_so(cloud, hosts):
    script = hosts[0] / "t5x_lite/source/launch/tpu_worker.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes(Path("launch/tpu_worker.sh").read_bytes())
    hosts.pop().rmdir()
    cloud.tpu_vm("run", *WHERE, *TRAIN)
    assert log_of(hosts[0], 1)[0].endswith("not set up; tpu_worker.sh setup")


def test_the_commands_of_the_guide(cloud):
    guide = Path("docs/tpu.md").read_text()
    given = "".join(f"{line.strip()}\n" for line in guide.splitlines() if line.startswith(("    where=", "    what=")))
    commands = [line.strip() for line in guide.splitlines() if line.startswith("    launch/tpu_vm.sh ")]
    assert {line.split()[1] for line in commands} == {
        *("create", "setup", "run", "logs", "status", "resume", "watch", "delete")
    }
    for line in commands:
        done = subprocess.run(["bash", "-c", given + line.replace("$where", "$where --dry_run")], capture_output=True)
        assert done.returncode == 0, line + done.stderr.decode()


def test_scripts_are_clean():
    scripts = [str(path) for pattern in ("launch/*.sh", "launch/*.sbatch") for path in sorted(Path().glob(pattern))]
    assert scripts
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), *scripts, str(FAKE)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
