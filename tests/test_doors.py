"""What the doors share: flags, and the one line and status of a mistake."""

import subprocess
import sys

import pytest

from t5x_lite import config, doors
from t5x_lite.errors import UserError


def message(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


DOOR = """
import sys
from t5x_lite import config, doors

def main(argv):
    def flags(parser):
        parser.add_argument("--dry_run", action="store_true")
        parser.add_argument("--steps", type=int)
    args = config.parse(argv, "bakes", flags)
    print(config.build("T5Config").d_model, args.dry_run)
    if args.steps == 130:
        raise KeyboardInterrupt

config.run_door(main)
"""


def door(folder, *words):
    (folder / "door.py").write_text(DOOR)
    return subprocess.run([sys.executable, "door.py", *words], capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_a_door_as_a_process(tmp_path):
    right = door(tmp_path, "--gin_file", "gin/models/tiny.gin", "--gin.T5Config.d_model=64", "--dry_run")
    assert (right.returncode, right.stdout, right.stderr) == (0, "64 True\n", "")
    wrong = door(tmp_path, "--gin_file=gin/models/tiny.gin", "--gin.T5Config.d_model=wide")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == (
        "door.py: command line: --gin.T5Config.d_model: T5Config.d_model is 'wide', a str; it must be a whole number\n"
    )
    assert door(tmp_path, "--gin_file=gin/models/tiny.gin", "--steps=130").returncode == 130


@pytest.mark.parametrize(
    "words, says",
    [
        (["--gin_fil=a.gin"], "no flag '--gin_fil'; nearest: '--gin_file'"),
        (["--gin_file=pizza.gin", "--dry"], "no flag '--dry'; nearest: '--dry_run'"),
        (["--gin_file=pizza.gin", "--MINUTES=3"], "no flag '--MINUTES'; a macro is set by --gin.MINUTES=VALUE"),
        (["--gin_file=pizza.gin", "--steps=many"], "argument --steps: invalid int value: 'many'"),
        (["--gin_file=pizza.gin", "word"], "unrecognized arguments: word"),
        ([], "the following arguments are required: --gin_file"),
    ],
)
def test_a_wrong_flag(words, says):
    def flags(parser):
        parser.add_argument("--dry_run", action="store_true")
        parser.add_argument("--steps", type=int)

    assert message(config.parse, words, "doc", flags).startswith(f"command line: {says}")


def test_flags_of_subcommands_are_known():
    def flags(parser):
        kinds = parser.add_subparsers(dest="kind", required=True)
        kinds.add_parser("soup").add_argument("--salt", type=int)

    assert config.parse_flags(["soup", "--salt", "3"], "doc", flags).salt == 3
    assert "nearest: '--salt'" in message(config.parse_flags, ["soup", "--sallt", "3"], "doc", flags)


def test_a_door_turns_a_user_error_into_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/t5x_lite/train.py", "--x"])

    def main(argv):
        raise UserError(f"{argv[0]} is wrong\n  In call to configurable 'train'")

    with pytest.raises(SystemExit) as stop:
        config.run_door(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "python -m t5x_lite.train: --x is wrong\n"


@pytest.mark.parametrize(
    "words, wanted",
    [
        ([], {}),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id", "1"],
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
        ),
    ],
)
def test_flags_of_a_job_become_its_environment(monkeypatch, words, wanted):
    found = {}
    monkeypatch.setattr(doors.os, "environ", found)
    assert vars(doors.parse_flags(words, "bakes", doors.process_flags)) == {}
    assert found == wanted


def test_a_job_is_named_whole_or_not_at_all():
    said = message(doors.parse_flags, ["--num_processes=2"], "bakes", doors.process_flags)
    assert said == "command line: --num_processes needs --coordinator and --process_id too"
