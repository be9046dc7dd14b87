"""`python -m t5x_lite.infer` as a user runs it: on prompts, on files, killed, and in several processes."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

SAMPLES = ("--temperature=1", "--n_best=2", "--seed=3", "--max_tokens=4")


@pytest.fixture(scope="module")
def run(workplace):
    """The working directory, with a trained run in it."""
    workplace.train("--gin.MODEL_DIR=run")
    return workplace


def infer(run, *arguments, **keywords):
    return run.run("infer", "--model_dir=run", *arguments, **keywords)


def test_an_answer_a_line_for_flags_and_for_standard_input(run):
    out, err = infer(run, *SAMPLES, "--prompt", "1 plus 2?", "--prompt", "3 plus 4?", "--scores")
    assert err == ""
    first, one, two, second, three, four = out.splitlines()
    assert (first, second) == ("1 plus 2?", "3 plus 4?")
    for number, line in zip([1, 2, 1, 2], [one, two, three, four], strict=True):
        assert line.startswith(f"  {number}. ") and float(line[5:].split("\t")[0]) < 0
    piped = subprocess.run(
        [sys.executable, "-m", "t5x_lite.infer", "--model_dir=run", *SAMPLES, "--scores"],
        cwd=run.path,
        input="\ufeff1 plus 2?\r\n\r\n3 plus 4?\r\n".encode(),
        capture_output=True,
        check=True,
    )
    assert piped.stdout.decode() == out


def test_a_table_of_questions_becomes_answers_and_scores(run):
    with open(run.path / "x.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "target", "note"], ["1 plus 2?", "three", "עברית"], ["a\nb", "four", ""]]
        )
    out, err = infer(run, "--input=x.csv", "--output=y.jsonl", "--beams=3", "--n_best=2")
    assert out == "" and "2 records in y.jsonl" in err
    text = (run.path / "y.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["prompt"] for line in found] == ["1 plus 2?", "a\nb"] and "עברית" in text
    assert [len(line["n_best"]) for line in found] == [2, 2]
    infer(run, "--input=x.csv", "--output=s.jsonl", "--mode=score")
    scored = [json.loads(line) for line in (run.path / "s.jsonl").read_text().splitlines()]
    out, _ = infer(run, "--mode=score", "--prompt", "1 plus 2?", "--target", "three")
    assert out == f"{scored[0]['score']:.4f}\tthree\n"
    assert scored[0]["score"] == pytest.approx(sum(scored[0]["token_scores"]))
    assert not list(run.path.glob("*.parts"))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--model_dir=./runn", "--prompt=a"], "nearest: 'run'"),
        (["--model_dir=run", "--step=7", "--prompt=a"], "no step 7 in"),
        (["--model_dir=run", "--beam=4", "--prompt=a"], "no flag '--beam'; nearest: '--beams'"),
        (["--model_dir=run", "--input=sums.gin", "--output=z.jsonl"], "sums.gin: files of records are"),
        (["--model_dir=run", "--few_shot=long.csv", "--prompt=a"], "and this model reads 48 in all"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, arguments, says):
    (run.path / "long.csv").write_text("prompt,answer\n" + "one and one and one?,two\n" * 20)
    before = sorted(run.path.rglob("*"))
    out, err = run.run("infer", *arguments, status=2)
    assert out == "" and err.startswith("python -m t5x_lite.infer: ") and says in err and len(err.splitlines()) == 1
    assert sorted(run.path.rglob("*")) == before


# ---------------------------------------------------------------------- killed, and in several processes


@pytest.fixture(scope="module")
def many(run):
    """Five chunks of questions, and the bytes that one process makes of them undisturbed."""
    questions = [{"id": n, "prompt": f"{n % 10} plus {n // 10 % 10}?"} for n in range(9000)]
    (run.path / "many.jsonl").write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    infer(run, *job("whole.jsonl"))
    whole = (run.path / "whole.jsonl").read_bytes()
    found = [json.loads(line) for line in whole.decode().splitlines()]
    assert [line["id"] for line in found] == list(range(9000))
    assert len({line["answer"] for line in found if line["prompt"] == "1 plus 2?"}) > 10
    return whole


def job(output):
    return ("--input=many.jsonl", f"--output={output}", *SAMPLES)


def start(run, monkeypatch, processes, *arguments):
    """So many processes of one job, which find each other through the environment."""
    started = []
    with socket.socket() as free, monkeypatch.context() as environment:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        for process in range(processes):
            if processes > 1:
                environment.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{port}")
                environment.setenv("JAX_NUM_PROCESSES", str(processes))
                environment.setenv("JAX_PROCESS_ID", str(process))
            started.append(run.start("infer", "--model_dir=run", *arguments))
    return started


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_killed_and_started_again_gives_the_bytes_of_one_that_was_not(run, many, monkeypatch, before, after):
    output = run.path / f"killed_{before}_{after}.jsonl"
    parts = output.with_name(f"{output.name}.parts")
    killed = start(run, monkeypatch, before, *job(output.name))
    deadline = time.monotonic() + 200
    while not list(parts.glob("[0-9]*.jsonl")):
        assert time.monotonic() < deadline and all(process.poll() is None for process in killed)
        time.sleep(0.005)
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    for process in killed:
        process.communicate()
    assert 0 < len(list(parts.glob("[0-9]*.jsonl"))) < 5 and not output.exists()

    said = []
    resumed = start(run, monkeypatch, after, *job(output.name))
    for process in resumed:
        said.append(process.communicate(timeout=300)[1])
        assert process.returncode == 0, said
    assert "going on after" in said[0] and all("going on" not in other for other in said[1:])
    assert output.read_bytes() == many
    assert not parts.exists()
