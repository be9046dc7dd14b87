"""How a server is set up: sizes of batches and queue, limits of requests, secrets."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from t5x_lite.errors import UserError

# Limits of one request; what is longer says so itself. The schema names them to clients.
MOST_ITEMS = 1000  # of a history, of exclusions, of candidates
MOST_FILTERS = 20
MOST_REQUESTS = 64  # in one body
MOST_TARGETS = 64  # to be scored
MOST_BEST = 4  # answers to one prompt
TITLE_LENGTH = 300  # characters
FILTER_LENGTH = 200
INTERESTS_LENGTH = 500
PROMPT_LENGTH = 20_000
TARGET_LENGTH = 2_000

BEAMS = 4  # of mode "beams"
STREAMED_TOKENS = 4  # between two events of a stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the flags of `python -m t5x_lite.serve` say. Times are in seconds.

    UserError for a value that cannot be.
    """

    model_dir: str
    catalogue: str | None = None  # an items.csv: exactly what is offered, in place of the run's own list
    max_batch: int = 16
    max_wait: float = 0.001  # that a request waits for others
    max_queue: int = 64
    max_k: int = 50
    max_body: int = 1_000_000  # bytes
    timeout: float = 10.0  # a request's deadline where it sets none, and the latest that it may set
    watch: float = 0.0  # between two looks at the run folder; 0: none
    api_key: str | None = None
    admin_token: str | None = None
    admin_anywhere: bool = False
    cors_origins: Sequence[str] = ()

    def __post_init__(self):
        for name, least in (("max_batch", 1), ("max_queue", 1), ("max_k", 1), ("max_body", 1000)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("max_wait", "watch"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is negative; give seconds, or 0")


def read_secret(flag: str, file: str | None, variable: str) -> str | None:
    """A secret from a file, else from an environment variable, else None. UserError for one that is empty."""
    if file is None:
        secret, where = os.environ.get(variable), variable
    else:
        try:
            secret, where = Path(file).read_text(), f"{flag} {file!r}"
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{flag}: {file!r} cannot be read ({error})") from None
    if secret is None:
        return None
    if not secret.strip().isascii() or not secret.strip():
        raise UserError(f"{where} is empty or not ASCII; write a secret of letters and digits into it")
    return secret.strip()
