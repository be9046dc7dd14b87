"""What every `python -m t5x_lite.X` shares: flags whose mistakes name the nearest flag, and errors of one line."""

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from t5x_lite.errors import UserError, nearest

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
    if not others:
        return parser.parse_args(argv)
    args, rest = parser.parse_known_args(argv)
    setattr(args, others, rest)
    return args


def run_door(main: Callable[[list[str]], None]) -> None:
    """Runs a door: a UserError becomes one line and status 2, Ctrl-C status 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{_prog()}: {first_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


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
