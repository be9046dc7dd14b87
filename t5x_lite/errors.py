"""What a user did wrong, said in one line: what, where, the nearest valid value, what to do."""

import contextlib
import difflib
import textwrap
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """An error of the user's input. The doors print its message as one line and exit with status 2."""


class LostProcess(Exception):
    """Another process of the job ended, and this one, which has said so, cannot go on. The doors exit with status 1."""


class FieldError(UserError):
    """What is wrong with one field of a request; `field` is its name, as "history[2]", the message does not say it."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Makes every UserError in its block one of this field."""
    try:
        yield
    except UserError as error:
        raise FieldError(field, str(error)) from None


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Names the closest candidates: `; nearest: 'a', 'b'`, or '' where nothing is close."""
    close = difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(repr(match) for match in close)}" if close else ""


def first_words(error: object) -> str:
    """What another library's error says, as a part of one line of ours."""
    return textwrap.shorten(str(error), 160, placeholder=" ...")
