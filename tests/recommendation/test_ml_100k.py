"""The embedded dataset from a wheel made here; once, where there is a package index, from the real one."""

import hashlib
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation import ml_100k
from t5x_lite.recommendation.formats import open_dataset

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n242\tKolya\t1996\tComedy\n"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with the dataset's two files; the cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", INTER)
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.item", ITEM)
    monkeypatch.setattr(ml_100k, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


class Pip:
    """Stands for the program: writes the file, or fails as pip does without a network."""

    def __init__(self, content):
        self.content = content
        self.commands = []

    def __call__(self, command, **_):
        self.commands.append(command)
        if self.content is None:
            error = "WARNING: Retrying\nERROR: No matching distribution found for recbole==1.2.1\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        Path(command[command.index("--dest") + 1], ml_100k.WHEEL).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "t5x_lite" / "ml-100k").iterdir())


def test_the_first_time_it_is_downloaded_and_says_whose_it_is(tmp_path, monkeypatch, wheel, capsys):
    pip = Pip(wheel.read_bytes())
    monkeypatch.setattr(subprocess, "run", pip)
    dataset = open_dataset("ml-100k")
    assert (dataset.name, dataset.catalogue.titles, len(dataset.interactions)) == ("ml-100k", ("Kolya (1996)",), 1)
    notice = capsys.readouterr().err
    for part in ("GroupLens", "research", "no commercial use", "redistribution", "doi:10.1145/2827872"):
        assert part in notice
    assert cached(tmp_path) == ["ml-100k.inter", "ml-100k.item"]
    assert open_dataset("ml-100k").catalogue.ids == ("242",)
    assert capsys.readouterr().err == ""
    assert len(pip.commands) == 1
    assert {"--no-deps", "recbole==1.2.1"} < set(pip.commands[0])


def test_without_a_network_it_says_which_file_to_put_where(tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(subprocess, "run", Pip(None))
    with pytest.raises(UserError) as error:
        open_dataset("ml-100k")
    folder = tmp_path / "cache" / "t5x_lite" / "ml-100k"
    assert str(error.value) == (
        "ml-100k: pip cannot download recbole==1.2.1 (ERROR: No matching distribution found for recbole==1.2.1); "
        f"put recbole-1.2.1-py3-none-any.whl into {folder}"
    )
    assert cached(tmp_path) == []
    (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(wheel.read_bytes())
    assert open_dataset("ml-100k").catalogue.ids == ("242",)


@pytest.mark.parametrize("own", [True, False])
def test_another_wheel_of_this_name_is_not_opened(tmp_path, monkeypatch, wheel, own):
    content = wheel.read_bytes() + b"more"
    monkeypatch.setattr(subprocess, "run", Pip(content))
    if own:
        folder = tmp_path / "cache" / "t5x_lite" / "ml-100k"
        folder.mkdir(parents=True)
        (folder / ml_100k.WHEEL).write_bytes(content)
    with pytest.raises(UserError, match=f"whl has sha256 {hashlib.sha256(content).hexdigest()}, not "):
        open_dataset("ml-100k")
    assert cached(tmp_path) == [ml_100k.WHEEL] * own


def test_a_first_time_that_was_cut_short_is_done_again(tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(subprocess, "run", Pip(wheel.read_bytes()))
    open_dataset("ml-100k")
    (tmp_path / "cache" / "t5x_lite" / "ml-100k" / "ml-100k.inter").unlink()
    assert len(open_dataset("ml-100k").interactions) == 1


def test_several_first_times_at_once(tmp_path, monkeypatch, wheel):
    pip, together = Pip(wheel.read_bytes()), threading.Barrier(8)

    def run(command, **options):
        together.wait(timeout=60)  # until all are downloading
        return pip(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    with ThreadPoolExecutor(8) as pool:
        datasets = list(pool.map(open_dataset, ["ml-100k"] * 8))
    assert [len(dataset.interactions) for dataset in datasets] == [1] * 8
    assert cached(tmp_path) == ["ml-100k.inter", "ml-100k.item"]


@pytest.mark.slow
def test_the_real_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        dataset = ml_100k.ml_100k()
    except UserError as error:
        if "pip cannot download" not in str(error):  # only a machine without the package index is excused
            raise
        pytest.skip(str(error))
    assert (len(dataset.interactions.users), len(dataset.catalogue), len(dataset.interactions)) == (943, 1682, 100_000)
    core = dataset.core(5)
    assert (len(core.interactions.users), len(core.catalogue), len(core.interactions)) == (943, 1349, 99_287)
    films = dataset.catalogue
    assert films.titles[films.number_of["50"]] == "Star Wars (1977)"
    assert films.titles[films.number_of["1412"]].endswith("(1995)")  # its year is in the title alone
    assert len(films.matching(["genre=Film-Noir"])) == 24
