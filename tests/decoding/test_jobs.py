"""Batch inference: against one call of the engine; broken off anywhere, it goes on to the same bytes."""

import dataclasses
import io
import json
import sys
import threading

import pytest

from t5x_lite.data import vocabularies
from t5x_lite.decoding import jobs
from t5x_lite.decoding.engine import Answer, Engine, Score
from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.jobs import FileJob, Request, answer_lines, infer
from t5x_lite.errors import UserError
from t5x_lite.model import T5Config
from tests.decoding.models import random_params

CONFIG = T5Config(
    vocab_size=259, d_model=16, num_heads=2, head_dim=8, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
)
MODEL = {"model": "abc", "step": 12}
RECORDS = [{"id": n, "prompt": "why? " * (n % 4) + str(n), "target": "so" * (n % 3)} for n in range(11)]


class Watched(Engine):
    """An engine that notes the prompts that it was asked and may be stopped before one of them."""

    stop_before: str | None = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked = []

    def generate(self, prompts, **arguments):
        if self.stop_before in prompts:
            raise KeyboardInterrupt
        self.asked += prompts
        return super().generate(prompts, **arguments)


@pytest.fixture(scope="module")
def generator():
    vocabulary = vocabularies.byte()
    return Generator(CONFIG, random_params(CONFIG), eos_id=vocabulary.eos_id)


@pytest.fixture
def engine(generator):
    return Watched(vocabularies.byte(), generator, {"inputs": 64, "targets": 6})


@pytest.fixture
def files(tmp_path):
    """(input, output), as text."""
    source = tmp_path / "x.jsonl"
    source.write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    return str(source), str(tmp_path / "y.jsonl")


def run(engine, files, request, *, chunk=4, model=MODEL):
    FileJob.check(*files, request, chunk=chunk).run(engine, model)
    with open(files[1], "rb") as file:
        return file.read()


def parsed(content):
    return [json.loads(line) for line in content.decode().splitlines()]


GREEDY = Request()
SAMPLES = Request(options={"temperature": 1.0, "n_best": 2, "max_tokens": 4}, seed=5)


@pytest.mark.parametrize("request_", [GREEDY, SAMPLES], ids=["greedy", "samples"])
@pytest.mark.parametrize("chunk", [4, 100])
def test_each_record_gets_the_answer_of_one_call_of_the_engine(engine, files, request_, chunk):
    found = parsed(run(engine, files, request_, chunk=chunk))
    expected = Engine.generate(engine, [r["prompt"] for r in RECORDS], seed=request_.seed, **request_.options)
    assert len(found) == len(RECORDS)
    for record, line, answer in zip(RECORDS, found, expected, strict=True):
        assert list(line) == [*record, "answer", "score", "ended", *(["n_best"] if answer.others else [])]
        assert {name: line[name] for name in record} == record
        assert (line["answer"], line["ended"]) == (answer.text, answer.ended)
        assert line["score"] == pytest.approx(answer.score, rel=1e-4)
        texts = [one["answer"] for one in line.get("n_best", [line])]
        assert texts == [answer.text, *(other.text for other in answer.others)]
    assert len({line["answer"] for line in found}) > 1


def test_scores_of_targets(engine, files):
    found = parsed(run(engine, files, Request(mode="score")))
    expected = engine.score([r["prompt"] for r in RECORDS], [r["target"] for r in RECORDS])
    for record, line, score in zip(RECORDS, found, expected, strict=True):
        assert list(line) == [*record, "score", "token_scores"]
        assert line["score"] == pytest.approx(score.total, rel=1e-4)
        assert line["token_scores"] == pytest.approx(score.tokens, rel=1e-4)
        assert len(line["token_scores"]) == len(record["target"]) + 1  # bytes, and the end


def test_no_records_give_an_empty_file(engine, files):
    open(files[0], "w").close()
    assert run(engine, files, GREEDY) == b""
    assert not engine.asked


# ---------------------------------------------------------------------- broken off


@pytest.fixture
def broken_off(engine, files, tmp_path):
    """A job of which two chunks of three are done."""
    engine.stop_before = RECORDS[8]["prompt"]
    with pytest.raises(KeyboardInterrupt):
        run(engine, files, SAMPLES)
    engine.stop_before, engine.asked = None, []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl", "y.jsonl.parts"]
    folder = tmp_path / "y.jsonl.parts"
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jsonl", "000001.jsonl", "job.json"]
    return folder


def unbroken(engine, files):
    return run(engine, (files[0], files[1].replace("y.jsonl", "z.jsonl")), SAMPLES)


def test_goes_on_where_it_was_broken_off_to_the_same_bytes(engine, files, broken_off, capsys):
    (broken_off / "000002.jsonl.tmp").write_text('{"id": 8, "pro')
    found = run(engine, files, SAMPLES)
    assert engine.asked == [r["prompt"] for r in RECORDS[8:]]
    assert not broken_off.exists()
    assert "going on after 8 of 11 records\n" in capsys.readouterr().err
    assert found == unbroken(engine, files)


@pytest.mark.parametrize("removed", [[], ["000000.jsonl"], ["000000.jsonl", "000001.jsonl"]], ids=len)
def test_a_kill_while_parts_are_removed_loses_nothing(engine, files, broken_off, removed):
    """The output is there by then; whoever takes it away may start the job again."""
    for name in removed:
        (broken_off / name).unlink()
    assert run(engine, files, SAMPLES) == unbroken(engine, files)


CHANGES = {
    "input_sha256": {},
    "seed": {"seed": 6},
    "top_k": {"options": {**SAMPLES.options, "top_k": 3}},
    "few_shot_sha256": {"exemplars": ({"prompt": "a", "answer": "b"},)},
    "mode": {"mode": "score", "options": {}},
}


@pytest.mark.parametrize("name, change", CHANGES.items(), ids=CHANGES)
def test_parts_of_another_job_are_refused_and_stay(engine, files, broken_off, name, change):
    if name == "input_sha256":
        with open(files[0], "a") as file:
            file.write('{"prompt": "one more", "target": ""}\n')
    assert_refused(engine, files, broken_off, name, dataclasses.replace(SAMPLES, **change))


@pytest.mark.parametrize("name, change", [("step", {"step": 8}), ("model", {"model": "def"})])
def test_parts_of_another_model_are_refused_and_stay(engine, files, broken_off, name, change):
    assert_refused(engine, files, broken_off, name, SAMPLES, model=MODEL | change)


def assert_refused(engine, files, folder, name, request, **arguments):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=f"'.*y.jsonl.parts' is of another job: {name} is .* there and .* here"):
        run(engine, files, request, **arguments)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not engine.asked


def test_a_folder_that_is_no_jobs_is_refused_and_stays(engine, files, tmp_path):
    mine = tmp_path / "y.jsonl.parts" / "000000.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"y\.jsonl\.parts' is not a job's"):
        run(engine, files, GREEDY)
    assert mine.read_text() == "mine"


# ---------------------------------------------------------------------- several processes


def test_processes_take_turns_at_the_chunks_and_the_first_joins_them(generator, files, monkeypatch):
    """Two threads in their place, since who took what is not seen from outside of processes."""
    monkeypatch.setattr(jobs.jax, "process_count", lambda: 2)
    monkeypatch.setattr(jobs.jax, "process_index", lambda: int(threading.current_thread().name))
    both = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(jobs.multihost_utils, "sync_global_devices", lambda _: both.wait())
    engines = [Watched(vocabularies.byte(), generator, {"inputs": 64, "targets": 6}) for _ in range(2)]
    found = {}

    def process(engine):
        found[threading.current_thread().name] = run(engine, files, SAMPLES)

    threads = [threading.Thread(target=process, args=[engine], name=str(n)) for n, engine in enumerate(engines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    monkeypatch.undo()
    prompts = [r["prompt"] for r in RECORDS]
    assert engines[0].asked == prompts[:4] + prompts[8:]
    assert engines[1].asked == prompts[4:8]
    assert found["0"] == found["1"] == unbroken(engines[0], files)


# ---------------------------------------------------------------------- what the model is asked, what a person reads


class Canned:
    """An engine that says what it is told to, and notes what it is asked."""

    lengths = {"inputs": 12}  # noqa: RUF012
    vocabulary = vocabularies.byte()

    def __init__(self, answers=()):
        self.answers, self.calls = answers, []

    def generate(self, prompts, *, first_number, **_):
        self.calls.append((first_number, prompts))
        return [self.answers[first_number + n] for n in range(len(prompts))]

    def score(self, prompts, targets):
        self.calls.append((prompts, targets))
        return [Score(-len(target) - 0.25, (0.0,)) for target in targets]


TOKYO = Answer("Tokyo", -0.5, True, (Answer("Kyo\nto", -2.25, True),))
OSLO = Answer("Oslo", -1.0, False, (Answer("", -3.0, True),))
PROMPTS = [{"prompt": "Japan?", "target": "Tokyo"}, {"prompt": "Norway?", "target": "Oslo"}]


@pytest.mark.parametrize(
    "request_, scores, expected",
    [
        (Request(), False, ["Tokyo", "Oslo"]),
        (Request(), True, ["-0.5000\tTokyo", "-1.0000\tOslo"]),
        (Request(mode="score"), False, ["-5.2500\tTokyo", "-4.2500\tOslo"]),
        (
            Request(options={"beams": 2, "n_best": 2}),
            False,
            ["Japan?", "  1. Tokyo", "  2. Kyo to", "Norway?", "  1. Oslo", "  2. "],
        ),
        (
            Request(options={"temperature": 1.0, "n_best": 2}),
            True,
            [
                "Japan?",
                "  1. -0.5000\tTokyo",
                "  2. -2.2500\tKyo to",
                "Norway?",
                "  1. -1.0000\tOslo",
                "  2. -3.0000\t",
            ],
        ),
    ],
    ids=["answers", "with scores", "of targets", "n_best", "n_best with scores"],
)
def test_lines_for_a_person(request_, scores, expected):
    assert list(answer_lines(Canned([TOKYO, OSLO]), request_, PROMPTS, scores=scores)) == expected


def test_lines_come_as_prompts_do():
    engine = Canned([TOKYO, OSLO])
    found = answer_lines(engine, Request(), iter(PROMPTS), chunk=1)
    assert next(found) == "Tokyo"
    assert engine.calls == [(0, ["Japan?"])]
    assert next(found) == "Oslo"
    assert engine.calls[1:] == [(1, ["Norway?"])]


EXEMPLARS = ({"prompt": "1{n}?", "answer": "one"}, {"prompt": "2?", "answer": "two"})


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_worked_examples_stand_before_each_prompt(mode):
    engine = Canned([TOKYO, OSLO])
    Request(mode=mode, exemplars=EXEMPLARS).results(engine, PROMPTS, first_number=0)
    shown = "1{n}?\none\n\n2?\ntwo\n\n"
    ((*_, asked),) = engine.calls if mode == "generate" else [engine.calls[0][:1]]
    assert asked == [f"{shown}Japan?", f"{shown}Norway?"]


def test_worked_examples_must_leave_room():
    Request(exemplars=EXEMPLARS[1:]).check_exemplars(Canned())  # 2?, two and three line ends: 8 bytes
    with pytest.raises(UserError, match="--few_shot: its 2 examples take 19 tokens, and this model reads 12 in all"):
        Request(exemplars=EXEMPLARS).check_exemplars(Canned())


# ---------------------------------------------------------------------- the whole call


@pytest.fixture
def loads(monkeypatch):
    """`infer` with canned answers in place of a model; (model_dir, step) of what it loaded."""
    loaded = []

    def load(model_dir, step):
        loaded.append((model_dir, step))
        return Canned([TOKYO, OSLO])

    monkeypatch.setattr(jobs.Engine, "load", load)
    return loaded


def test_prompts_of_the_command_line(loads, capsys):
    infer("some/model", prompts=["Japan?", "Norway?"], beams=None, scores=True)
    assert capsys.readouterr().out == "-0.5000\tTokyo\n-1.0000\tOslo\n"
    assert loads == [("some/model", None)]


def test_lines_of_standard_input(loads, capsys, monkeypatch):
    content = "\ufeffJapan?\r\n\r\nNorway?".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    infer("some/model", beams=2, n_best=2)
    assert capsys.readouterr().out == "Japan?\n  1. Tokyo\n  2. Kyo to\nNorway?\n  1. Oslo\n  2. \n"


def test_several_targets_of_one_prompt(loads, capsys):
    infer("some/model", mode="score", prompts=["Japan?"], targets=["Tokyo", "Oslo"])
    assert capsys.readouterr().out == "-5.2500\tTokyo\n-4.2500\tOslo\n"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"input": "x.jsonl"}, "--input needs --output"),
        ({"output": "y.jsonl"}, "--output needs --input"),
        ({"input": "x.jsonl", "output": "y.jsonl", "prompts": ["a"]}, "a file or prompts, not both"),
        ({"input": "w.jsonl", "output": "y.jsonl"}, "no file 'w.jsonl'; nearest: 'x.jsonl'"),
        ({"input": "x.jsonl", "output": "y.csv"}, "--output: 'y.csv' must end in .jsonl"),
        ({"input": "x.jsonl", "output": "x.jsonl"}, "--output: 'x.jsonl' is there already"),
        ({"input": "x.jsonl", "output": "out/y.jsonl"}, "--output: no folder 'out'; nearest: 'outs'"),
        ({"input": "p.txt", "output": "y.jsonl", "mode": "score"}, "p.txt:1: no 'target'"),
        ({"input": "p.txt", "output": "y.jsonl", "top_p": 0.5}, "top_p is set and temperature is 0"),
        ({"input": "x.jsonl", "output": "y.jsonl", "few_shot": "p.txt"}, "p.txt:1: no 'answer'"),
        ({"prompts": ["a"], "n_best": 2}, "n_best is 2 with 1 beam(s)"),
        ({"prompts": ["a"], "targets": ["b"]}, "--target is what --mode=score scores"),
        ({"prompts": ["a"], "mode": "score"}, "given: 1 and 0"),
        ({"mode": "score", "targets": ["b"]}, "given: 0 and 1"),
        ({"prompts": ["a"] * 2, "targets": ["b"] * 3, "mode": "score"}, "given: 2 and 3"),
        ({"prompts": ["a"], "targets": ["b"], "mode": "score", "beams": 2}, "--beams is for answers"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(loads, files, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "outs").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        infer("some/model", **arguments)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not loads and sorted(tmp_path.rglob("*")) == before


def test_the_last_line_is_checked_before_the_first_is_answered(loads, files):
    with open(files[0], "a") as file:
        file.write('{"id": 11}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:12: no 'prompt'"):
        infer("some/model", input=files[0], output=files[1])
    assert not loads
