"""What every `python -m t5x_lite.X` shares: flags whose mistakes name the nearest flag, and errors of one line."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from t5x_lite.errors import LostProcess, UserError, nearest

Flags = Callable[[argparse.ArgumentParser], None]


def parse_flags(argv: Sequence[str], doc: str, flags: Flags, others: str | None = None) -> argparse.Namespace:
    """Reads a door's own flags. Raises UserError for an unknown one, with the nearest; prints help for --help.

    A door that hands flags on gets the list of the unknown ones under the name `others`; slips of its own are refused.
    """
    parser = _Parser(
        prog=_prog(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flags(parser)
    # Before argparse, which speaks of a missing --model_dir first when it was given as --modle_dir.
    known = _options(parser)
    for word in argv:
        flag = word.split("=")[0]
        slip = not others or difflib.get_close_matches(flag, known, 1, 0.8)
        if flag.startswith("--") and flag not in known and slip:
            close = f"; a macro is set by --gin.{flag[2:]}=VALUE" if flag[2:].isupper() else nearest(flag, known)
            raise UserError(f"command line: no flag {flag!r}{close}; --help lists the flags")
    args, rest = parser.parse_known_args(argv) if others else (parser.parse_args(argv), [])
    if others:
        setattr(args, others, rest)
    if hasattr(args, "coordinator"):
        _name_job({name: vars(args).pop(name) for name in _OF_A_JOB})
    return args


# Flags that say which processes work together, and where JAX looks for the same: one way to say it in code.
_OF_A_JOB = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a job that no scheduler starts; `parse_flags` hands them on and takes them from its result."""
    group = parser.add_argument_group("several processes, where no scheduler starts them (docs/long_runs.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the machine of process 0, and a free port of it")
    group.add_argument("--num_processes", metavar="N", help="how many processes there are")
    group.add_argument("--process_id", metavar="I", help="which of them this is: 0 to N-1")


def _name_job(values: Mapping[str, str | None]) -> None:
    given = {name: value for name, value in values.items() if value is not None}
    if given and (missing := [f"--{name}" for name in values if name not in given]):
        raise UserError(f"command line: --{next(iter(given))} needs {' and '.join(missing)} too")
    os.environ.update({_OF_A_JOB[name]: value for name, value in given.items()})


def run_door(main: Callable[[list[str]], None]) -> None:
    """Runs a door: a UserError becomes one line and status 2, Ctrl-C status 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{_prog()}: {first_line(error)}", file=sys.stderr)
        _leave(2)
    except LostProcess:
        _leave(1)
    except KeyboardInterrupt:
        _leave(130)
    except Exception:
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> None:
    # Loaded by every command that may be one of several processes, and not for --help.
    if processes := sys.modules.get("t5x_lite.processes"):
        processes.leave(status)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"command line: {message}; --help lists the flags")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag of a parser and of its subcommands."""
    options = [option for action in parser._actions for option in action.option_strings]
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            options += [option for sub in action.choices.values() for option in _options(sub)]
    return options


def _prog() -> str:
    script = Path(sys.argv[0])
    return f"python -m t5x_lite.{script.stem}" if script.parent.name == "t5x_lite" else script.name


def first_line(message: object) -> str:
    """What an error says itself; gin appends a line for every configurable that it passes."""
    return str(message).splitlines()[0]
