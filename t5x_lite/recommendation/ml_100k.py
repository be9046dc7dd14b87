"""MovieLens 100K (Harper & Konstan 2015) without an account: out of the wheel of RecBole, which pip gets."""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from t5x_lite.errors import UserError, first_words
from t5x_lite.files import cache_folder
from t5x_lite.recommendation.atomic_files import read_atomic_files
from t5x_lite.recommendation.interactions import Dataset

NAME = "ml-100k"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"

_REQUIREMENT = "recbole==1.2.1"
_FILES = (f"{NAME}.item", f"{NAME}.inter")
_NOTICE = (
    "MovieLens 100K belongs to GroupLens, University of Minnesota. It is for research: no commercial use and no "
    "redistribution without their permission. Who publishes with it cites Harper and Konstan, The MovieLens Datasets: "
    "History and Context, ACM TiiS 5(4), 2015, doi:10.1145/2827872. Terms: "
    "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt"
)


def ml_100k() -> Dataset:
    """943 users, 1682 films, 100,000 ratings of 1 to 5; kept in the user's cache folder from the first time on.

    UserError where there is no network then; it says which file to put where.
    """
    folder = cache_folder(NAME)
    if not all((folder / name).exists() for name in _FILES):
        _unpack(_wheel(folder), folder)
        print(_NOTICE, file=sys.stderr)
    return read_atomic_files(folder / f"{NAME}.inter", NAME)


def _wheel(folder: Path) -> bytes:
    """The wheel that lies in the folder, or the package index's."""
    own = folder / WHEEL
    if own.exists():
        return _checked(own)
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1", "--dest", downloads]
        done = subprocess.run([*command, *options, _REQUIREMENT], capture_output=True, text=True)
        if done.returncode or not (Path(downloads) / WHEEL).exists():
            # pip says what is wrong last; before that it may warn.
            reason = first_words(done.stderr.strip().rpartition("\n")[2] or f"no {WHEEL}")
            raise UserError(f"{NAME}: pip cannot download {_REQUIREMENT} ({reason}); put {WHEEL} into {folder}")
        return _checked(Path(downloads) / WHEEL)


def _checked(path: Path) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WHEEL_SHA256:
        raise UserError(f"{path} has sha256 {found}, not {WHEEL_SHA256}; put PyPI's {WHEEL} there")
    return content


def _unpack(wheel: bytes, folder: Path) -> None:
    """Each file appears whole; processes that race write the same."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive, tempfile.TemporaryDirectory(dir=folder) as unfinished_files:
        for name in _FILES:
            unfinished = Path(unfinished_files) / name
            unfinished.write_bytes(archive.read(f"recbole/dataset_example/{NAME}/{name}"))
            unfinished.replace(folder / name)
