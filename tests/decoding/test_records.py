"""Files of records: what is read from each format, what is refused, and files that are whole or not there."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.decoding import records
from t5x_lite.errors import UserError

HEBREW, FULL_WIDTH = "מה בירת יפן?", "日本の首都は\u3000どこ?"


def read(tmp_path, name, content, *arguments):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(records.read(path, *arguments))


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.txt", f"{HEBREW}\n{FULL_WIDTH}\n"),
        ("x.TXT", f"{HEBREW}\n{FULL_WIDTH}"),
        ("x.jsonl", f'{{"prompt": "{HEBREW}"}}\n{{"prompt": "{FULL_WIDTH}"}}\n'),
        ("x.jsonl", f"{json.dumps({'prompt': HEBREW})}\n{json.dumps({'prompt': FULL_WIDTH})}"),  # all as \u05de
        ("x.csv", f"prompt\n{HEBREW}\n{FULL_WIDTH}\n"),
        ("x.csv", f'"prompt"\n"{HEBREW}"\n"{FULL_WIDTH}"'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n\r\n"], ids=repr)
def test_byte_order_marks_line_ends_and_empty_lines_are_no_text(tmp_path, name, content, mark, end):
    found = read(tmp_path, name, mark + content.replace("\n", end))
    assert found == [{"prompt": HEBREW}, {"prompt": FULL_WIDTH}]


def test_a_record_keeps_its_other_fields(tmp_path):
    record = {"id": 7, "prompt": "a", "tags": ["x", None], "nested": {"y": 1.5}}
    assert read(tmp_path, "x.jsonl", json.dumps(record)) == [record]
    cells = 'id,prompt,note\r\n7,"a, ""b""\r\nc",\r\n'
    assert read(tmp_path, "x.csv", cells) == [{"id": "7", "prompt": 'a, "b"\r\nc', "note": ""}]


def test_a_line_of_text_keeps_its_blanks_and_rare_line_separators(tmp_path):
    assert read(tmp_path, "x.txt", "  a\tb \u2028c\x0bd \n") == [{"prompt": "  a\tb \u2028c\x0bd "}]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("x.gin", "a", "x.gin: files of records are .jsonl, .csv or .txt, not .gin"),
        ("x", "a", "x: files of records are .jsonl, .csv or .txt, not without extension"),
        ("x.jsonl", '{"prompt": "a"}\n\n{"promt": "b"}', "x.jsonl:3: no 'prompt'; nearest: 'promt'; there are promt"),
        ("x.jsonl", "{}", "x.jsonl:1: no 'prompt'; there are no fields"),
        ("x.jsonl", '{"prompt": 5}', "x.jsonl:1: 'prompt' is 5, not text"),
        ("x.jsonl", '{"prompt": null}', "x.jsonl:1: 'prompt' is None, not text"),
        ("x.jsonl", '\n{"prompt": "a"', "x.jsonl:2: not JSON (Expecting ',' delimiter"),
        ("x.jsonl", '["prompt"]', "x.jsonl:1: a list, not a JSON object"),
        ("x.jsonl", '{"prompt": "\\ud83d"}', "x.jsonl:1: not JSON ('utf-8' codec can't encode"),
        ("x.jsonl", '{"prompt": "a", "score": 1}', "x.jsonl:1: a field 'score', which is the model's own"),
        ("x.csv", "id,promt\n1,a\n", "x.csv:2: no 'prompt'; nearest: 'promt'; there are id, promt"),
        ("x.csv", 'id,prompt\n1,"a\nb"\n2\n', "x.csv:4: 1 cells where the header has 2 (id, prompt)"),
        ("x.csv", "", "x.csv: empty; its first line must name the columns"),
        ("x.csv", "prompt\n" + "a" * 200_000, "x.csv: cannot be read as UTF-8 .csv (field larger"),
        ("x.txt", "Zürich".encode("latin-1"), "x.txt: cannot be read as UTF-8 .txt ("),
        ("x.jsonl", '{"prompt": "a"}'.encode("utf-16"), "x.jsonl: cannot be read as UTF-8 .jsonl ("),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_line(tmp_path, name, content, says):
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, content, ["prompt"], ["score"])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{says}") and len(said.splitlines()) == 1


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "questions.jsonl").touch()
    with pytest.raises(UserError, match=r"no file '.*/question.jsonl'; nearest: 'questions.jsonl'"):
        list(records.read(tmp_path / "question.jsonl"))


ANY_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)


@given(st.lists(st.fixed_dictionaries({"prompt": st.text()}, optional={"more": ANY_JSON}), max_size=5))
def test_what_is_written_is_read_again(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("round") / "x.jsonl"
    records.write_whole(path, written)
    assert list(records.read(path)) == written


def test_text_is_written_as_it_reads(tmp_path):
    records.write_whole(tmp_path / "x.jsonl", [{"prompt": HEBREW}])
    assert (tmp_path / "x.jsonl").read_bytes() == f'{{"prompt": "{HEBREW}"}}\n'.encode()


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path):
    def broken_off():
        yield {"prompt": "a"}
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        records.write_whole(tmp_path / "x.jsonl", broken_off())
    assert not (tmp_path / "x.jsonl").exists()


def test_parts_are_joined_in_their_order(tmp_path):
    parts = [tmp_path / name for name in ("b", "a", "c")]
    for part in parts:
        part.write_bytes(part.name.encode() + b"\n")
    records.join(parts, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"b\na\nc\n"
