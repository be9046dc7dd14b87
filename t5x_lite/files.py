"""Files that are whole or not there, and where those are kept that a machine can make or download again."""

import os
from pathlib import Path

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in object storage (gs://bucket/...), where files have no appending and folders no renaming."""
    return "://" in str(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root; epath's own `absolute` puts the working directory before a gs:// path."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that no reader sees before it is complete, also where several processes write it at once."""
    if is_remote(path):  # an object appears when all of it was sent
        path.write_bytes(content)
        return
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def cache_folder(name: str) -> Path:
    """A folder of the user's cache, made if it is not there: $XDG_CACHE_HOME, or ~/.cache, then t5x_lite/`name`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "t5x_lite" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
