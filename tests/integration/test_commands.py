"""train, infer, evaluate, inspect: a user's own tasks, end to end, and what is said when something is wrong."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def trained(workplace):
    out, _ = workplace.train()
    return workplace, out


def test_a_users_own_module_trains_to_a_complete_run_folder(trained):
    workplace, out = trained
    run = workplace.path / "run"
    assert {path.name for path in run.iterdir()} >= {
        "checkpoints",
        "config.gin",
        "config.json",
        "eval",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
        "train",
        "vocabulary",
    }
    assert [line["step"] for line in workplace.metrics("run") if line["kind"] == "train"] == list(range(1, 13))
    assert "random parameters from seed 0" in out
    assert json.loads((run / "config.json").read_text())["train"]["train_steps"] == 12
    assert "token_embedder/embedding" in out and "bytes/device" in out


def test_infer_answers_each_prompt_on_a_line(trained):
    workplace, _ = trained
    out, _ = workplace.run("infer", "--model_dir=run", "--prompt", "1 plus 2?", "--prompt", "3 plus 4?")
    assert len(out.splitlines()) == 2


def test_infer_warns_of_characters_that_the_vocabulary_lacks(trained):
    workplace, _ = trained
    _, err = workplace.run("infer", "--model_dir=run", "--prompt", "日本の首都は?")
    assert "86% of the prompt's characters are not in this model's vocabulary" in err and "日" in err
    assert "google/mt5-small" in err and "google/byt5-small" in err


@pytest.mark.slow
def test_what_each_command_compiles_is_kept_for_the_next(workplace, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    kept = [0]
    for _ in range(2):
        workplace.train("--gin.MODEL_DIR=kept", "--gin.TRAIN_STEPS=3")
        for door in (["infer", "--prompt=1 plus 2?"], ["evaluate"]):
            workplace.run(door[0], "--model_dir=kept", *door[1:])
            kept.append(len(list(tmp_path.glob("t5x_lite/compiled/*/*-cache"))))
        shutil.rmtree(workplace.path / "kept")
    first, second, *again = kept[1:]
    assert 0 < first < second and set(again) == {second}
    assert any("jit_step" in path.name for path in tmp_path.rglob("*-cache"))


def test_evaluate_scores_a_moved_run_folder(trained):
    workplace, _ = trained
    (workplace.path / "run").rename(workplace.path / "moved")
    try:
        out, _ = workplace.run("evaluate", "--model_dir=moved")
        results = json.loads((workplace.path / "moved" / "eval" / "results.json").read_text())
    finally:
        (workplace.path / "moved").rename(workplace.path / "run")
    assert "sums" in out and "unseen" in out
    assert results["tasks"]["sums"]["examples"] == 60
    assert {name: t["split"] for name, t in results["tasks"]["sums"]["templates"].items()} == {
        "plus": "seen",
        "sum": "seen",
        "and": "unseen",
    }


def test_a_finished_run_is_left_alone(trained):
    workplace, _ = trained
    before = workplace.metrics("run")
    out, _ = workplace.train()
    assert "nothing to do" in out
    assert workplace.metrics("run") == before


def test_inspect(trained):
    workplace, _ = trained
    out, _ = workplace.run("inspect", "tasks", "--module=my_tasks")
    assert "sums" in out
    out, _ = workplace.run("inspect", "tasks", "sums", "--module=my_tasks", "--model_dir=run")
    assert "plus" in out and "encoder_segment_ids" in out and "characters lost: 0.00%" in out
    out, _ = workplace.run("inspect", "checkpoint", "run")
    assert "encoder/layers_0/attention/query/kernel" in out and "sums" in out
    out, _ = workplace.run("inspect", "model", "--gin_file=gin/models/flan_t5_small.gin")
    assert "76,961,152 parameters" in out


def test_dry_run_writes_nothing(workplace):
    out, _ = workplace.train("--gin.MODEL_DIR=dry", "--dry_run")
    assert "parameters" in out and not (workplace.path / "dry").exists()


@pytest.mark.parametrize(
    "override, says",
    [
        ("--gin.TRAIN_STEP=5", "nothing reads 'TRAIN_STEP'; nearest: 'TRAIN_STEPS'"),
        ("--gin.TRAIN_STEPS=abc", "must be a whole number"),
        ("--gin.MIXTURE_OR_TASK_NAME=sum", "no task or mixture 'sum'; nearest: 'sums'"),
        ("--gin.MIXTURE_OR_TASK_MODULE=my_task", "no module 'my_task'"),
        ("--gin.T5Config.d_modl=5", "nearest: 'd_model'"),
        ("--gin.MODEL_DIR=sums.gin", "is a file"),
        ("--gin.MODEL_DIR=.", "not a run folder"),
        ("--gin.T5Config.dropout_rate=1.5", "it must lie in [0, 1)"),
        ("--gin_fil=sums.gin", "nearest: '--gin_file'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(workplace, override, says):
    _, err = workplace.train(override, "--gin.LOG_PERIOD=1", status=2)
    own = [line for line in err.splitlines() if line.startswith("python -m t5x_lite.train: ")]
    assert len(own) == 1 and says in own[0], err
    assert "Traceback" not in err


def test_a_run_folder_of_another_model_is_refused_and_untouched(trained):
    workplace, _ = trained
    before = (workplace.path / "run" / "manifest.json").read_text()
    _, err = workplace.train("--gin.T5Config.d_ff=64", status=2)
    assert "model.d_ff is 32 there and 64" in err
    assert (workplace.path / "run" / "manifest.json").read_text() == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_batch(workplace):
    _, err = workplace.train("--gin.MODEL_DIR=nan", "--gin.LEARNING_RATE=1e30", status=1)
    assert "its batch is in nan/nonfinite_batch_" in err
    assert len(list((workplace.path / "nan").glob("nonfinite_batch_*.npz"))) == 1
