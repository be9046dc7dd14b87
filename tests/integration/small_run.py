"""`python -m t5x_lite.train` of a tiny run whose task is made by hand: without TensorFlow it starts in half the time.

python small_run.py RUN MESH [--coordinator=... --num_processes=... --process_id=...] [NAME=VALUE of TrainConfig ...]
"""

import ast
import os
import signal
import sys
import types

import numpy as np

from t5x_lite import config, doors, processes
from t5x_lite.data import vocabularies
from t5x_lite.data.pipeline import EvalSet
from t5x_lite.data.token_store import TokenStore
from t5x_lite.model import T5Config
from t5x_lite.run_folder import write_manifest
from t5x_lite.training import evaluation, loop
from t5x_lite.training.optimizers import adamw
from t5x_lite.training.run import Data, Run, TrainConfig
from t5x_lite.training.schedules import learning_rate

MODEL = T5Config(
    vocab_size=259,  # of bytes
    vocab_multiple=128,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
)
RATE = learning_rate("constant", base_learning_rate=1e-2)
RULES = {"data": "data", "fsdp": "fsdp", "model": "fsdp_model"}


def store(count: int) -> TokenStore:
    rng = np.random.default_rng(0)
    lengths, ends = rng.integers(1, 20, count), rng.integers(1, 8, count)
    offsets, target_offsets = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (lengths, ends))
    inputs, targets = (rng.integers(3, 259, sizes[-1]).astype(np.int32) for sizes in (offsets, target_offsets))
    return TokenStore("by_hand", inputs, offsets, targets, target_offsets)


def likelihood(targets, scores) -> dict[str, float]:
    return {"log_likelihood": float(np.mean(scores))}


def length(targets, predictions) -> dict[str, float]:
    return {"length": float(np.mean([len(text) for text in predictions]))}


TASK = types.SimpleNamespace(
    name="by_hand",
    postprocess_fn=lambda text, **_: text,
    predict_metric_fns=[length],
    predict_with_aux_metric_fns=[],
    score_metric_fns=[likelihood],
)


def eval_set(count: int) -> EvalSet:
    examples = [store(count).example(i) for i in range(count)]
    inputs, targets = ([list(map(int, example[part])) for example in examples] for part in (0, 1))
    same = ["asked"] * count
    return EvalSet(TASK, inputs, targets, same, [["answer"]] * count, same, ["seen"] * count, [{}] * count)


def prepare(made: TrainConfig) -> Run:
    resuming = os.path.exists(os.path.join(made.model_dir, "manifest.json"))
    data = Data((TASK,), (1.0,), "none", knowledge=None)
    return Run(made, data, vocabularies.byte(), MODEL, source=None, resuming=resuming)


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("run")
        parser.add_argument("mesh", choices=tuple(RULES))
        parser.add_argument("settings", nargs="*", default=[])
        doors.process_flags(parser)

    args = doors.parse_flags(argv, __doc__, flags)
    config.load([f"gin/meshes/{RULES[args.mesh]}.gin"])
    settings = dict(setting.split("=") for setting in args.settings)
    made = TrainConfig(
        **{
            "model_dir": args.run,
            "mixture_or_task_name": "by_hand",
            "task_feature_lengths": {"inputs": 32, "targets": 12},
            "train_steps": 8,
            "batch_size": 8,
            "model": MODEL,
            "partitioner": config.build("Partitioner"),
            "optimizer": adamw(RATE),
            "learning_rate": RATE,
            "log_period": 1,
            "eval_period": 4,
            "checkpoint_period": 3,
            **{name: ast.literal_eval(value) for name, value in settings.items()},
        }
    )
    loop.prepare = prepare
    loop.materialize = lambda *_: store(300)
    loop.warn_of_lost_characters = lambda *_: None
    loop.write_run_folder = lambda run: write_manifest(run.config.model_dir, run.manifest())
    evaluation.load_eval_sets = lambda *_: [eval_set(20)]
    evaluation.answer_with = lambda task: None  # which asks the registry of tasks
    with processes.together(f"start all of them again with the same command: {args.run} goes on"):
        finished = loop.train(made)
    if not finished:
        sys.exit(128 + signal.SIGTERM)  # as the door does


if __name__ == "__main__":
    doors.run_door(main)
