import json
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.sources import Files, Rows, Tfds
from t5x_lite.errors import UserError


def numbered(count):
    return Rows({"train": [{"n": n} for n in range(count)], "test": lambda: iter([{"n": -1}])})


def test_rows_come_from_lists_and_functions():
    source = numbered(3)
    assert source.splits == ("train", "test")
    assert list(source.rows("train")) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert list(source.rows("test")) == list(source.rows("test")) == [{"n": -1}]
    assert (source.num_rows("train"), source.num_rows("test")) == (3, 1)


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(UserError, match="no split 'tran'; nearest: 'train'"):
        numbered(1).rows("tran")


@given(st.integers(0, 30), st.integers(1, 7), st.none() | st.integers(0, 5))
def test_shards_are_the_parts_of_one_order(count, shards, seed):
    source = numbered(count)
    whole = list(source.rows("train", seed=seed))
    parts = [list(source.rows("train", shard=(i, shards), seed=seed)) for i in range(shards)]
    assert sorted(row["n"] for row in whole) == list(range(count))
    assert [whole[i::shards] for i in range(shards)] == parts


def test_a_seed_is_an_order():
    first, again, other = (list(numbered(50).rows("train", seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_files_of_three_kinds_hold_the_same_rows(tmp_path):
    row = {"country": "Côte d'Ivoire", "capital": "Yamoussoukro, de jure"}
    write(tmp_path / "a.jsonl", json.dumps(row) + "\n\n")
    write(tmp_path / "a.csv", '\ufeffcountry,capital\nCôte d\'Ivoire,"Yamoussoukro, de jure"\n')
    write(tmp_path / "a.tsv", "country\tcapital\nCôte d'Ivoire\tYamoussoukro, de jure\n")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        assert list(Files({"train": tmp_path / name}).rows("train")) == [row]


def test_a_glob_reads_its_files_in_order(tmp_path):
    for n in (2, 1, 3):
        write(tmp_path / f"part-{n}.jsonl", json.dumps({"n": n}))
    assert [row["n"] for row in Files({"train": f"{tmp_path}/part-*.jsonl"}).rows("train")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2,}\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: a list"),
        ("a.csv", "a,b\n1,2\n1\n", r"a\.csv:3: 1 fields where the header has 2 \(a, b\)"),
        ("a.tsv", "", "empty"),
        ("a.txt", "a\n", "not .txt"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        list(Files({"train": tmp_path / name}).rows("train"))


def test_other_encodings_and_missing_files_are_said(tmp_path):
    (tmp_path / "a.csv").write_bytes("a\nMünchen\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        list(Files({"train": tmp_path / "a.csv"}).rows("train"))
    with pytest.raises(UserError, match=r"no file '.*nowhere\.jsonl'"):
        list(Files({"train": tmp_path / "nowhere.jsonl"}).rows("train"))


BOOL_Q = Tfds("bool_q", splits={"train": "train"}, fields=lambda e: {"question": e["question"].decode()})


def test_tfds_rows_and_their_number():
    with tfds.testing.mock_data(num_examples=5, policy=tfds.testing.MockPolicy.USE_CODE):
        rows = list(BOOL_Q.rows("train"))
        assert len(rows) == 5
        assert all(isinstance(row["question"], str) for row in rows)
        assert list(BOOL_Q.rows("train")) == rows
        assert list(BOOL_Q.rows("train", shard=(1, 2))) == rows[1::2]


def test_a_tfds_set_that_is_not_there_is_the_users_to_mend():
    with pytest.raises(UserError, match="TFDS set 'no_such_set' cannot be prepared: DatasetNotFoundError"):
        list(Tfds("no_such_set", splits={"train": "train"}, fields=dict).rows("train"))


def test_making_a_tfds_source_imports_nothing():
    code = (
        "import sys; from t5x_lite.data.sources import Tfds; Tfds('squad', {'train': 'train'}, dict);"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
