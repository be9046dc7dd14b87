"""A run: what gin asked for, and everything that is built from it before the first step."""

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import optax

from t5x_lite import run_folder
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.model import T5Config
from t5x_lite.partitioning import Partitioner, bytes_per_device, sharding_table
from t5x_lite.training.state import TrainState

_VOCAB_MULTIPLE = 128  # the head's columns divide over a mesh; also T5's own rounding (32100 pieces, 32128 rows)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run as gin binds it (configurable `train`); gin/base.gin says what each macro means."""

    model_dir: str
    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    train_steps: int
    batch_size: int
    model: T5Config
    partitioner: Partitioner
    optimizer: optax.GradientTransformation
    learning_rate: Callable
    mixture_or_task_module: str | None = None
    vocabulary: str = "train"
    vocabulary_size: int = 4096
    initial_checkpoint_path: str | None = None
    assignment_map: list | None = None
    microbatches: int = 1
    pack: bool = True
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    seed: int = 0
    log_period: int = 50
    eval_period: int = 1000
    eval_split: str = "validation"
    eval_examples: int = 200
    checkpoint_period: int = 500
    keep_checkpoints: int = 3
    best_metric: str | None = None

    def __post_init__(self):
        lengths = self.task_feature_lengths
        if set(lengths) != {"inputs", "targets"} or min(lengths.values()) < 1:
            raise UserError(
                f"TASK_FEATURE_LENGTHS is {dict(lengths)}; it needs positive 'inputs' and 'targets', "
                "like {'inputs': 64, 'targets': 16}"
            )
        for name in (
            "train_steps",
            "batch_size",
            "microbatches",
            "log_period",
            "eval_period",
            "checkpoint_period",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name.upper()} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.microbatches:
            raise UserError(
                f"BATCH_SIZE {self.batch_size} does not divide into MICROBATCHES {self.microbatches} equal parts"
            )
        if self.batch_size // self.microbatches % self.partitioner.data_size:
            raise UserError(
                f"BATCH_SIZE {self.batch_size} / MICROBATCHES {self.microbatches} does not divide over the mesh's "
                f"{self.partitioner.data_size} data shards; use a multiple of "
                f"{self.microbatches * self.partitioner.data_size}"
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's tasks, vocabulary and model; `resuming` when its folder already held checkpoints."""

    config: TrainConfig
    tasks: tuple
    rates: tuple[float, ...]
    vocabulary: vocabularies.Vocabulary
    model: T5Config
    templates_sha256: str
    resuming: bool

    @property
    def lengths(self) -> dict[str, int]:
        return dict(self.config.task_feature_lengths)

    def manifest(self) -> dict[str, Any]:
        return {
            "format": 1,
            "model": dataclasses.asdict(self.model),
            "lengths": self.lengths,
            "mixture_or_task": self.config.mixture_or_task_name,
            "best_metric": self.config.best_metric,
            "vocabulary": {
                "kind": self.vocabulary.kind,
                "sha256": self.vocabulary.sha256,
                "size": self.vocabulary.size,
            },
            "templates_sha256": self.templates_sha256,
            "versions": _versions(),
            "git": _git_revision(),
            "hardware": f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        }


def prepare(config: TrainConfig) -> Run:
    """Finds the tasks, makes or reads the vocabulary, sizes the model. Writes nothing.

    Raises UserError for an unknown module or task, a folder that cannot be written, and a folder of another run.
    """
    from t5x_lite.data import registry  # imports TensorFlow, which a configuration alone does not need

    resuming = _check_model_dir(config.model_dir)
    if config.mixture_or_task_module:
        registry.import_module(config.mixture_or_task_module)
    mixture = registry.get_mixture_or_task(config.mixture_or_task_name)
    tasks, rates = registry.tasks_and_rates(mixture)
    if resuming:
        vocabulary = vocabularies.load(os.path.join(config.model_dir, "vocabulary"))
    else:
        vocabulary = _make_vocabulary(config, tasks)
    rows = -(-vocabulary.size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    model = dataclasses.replace(config.model, vocab_size=rows)
    texts = {task.name: registry.template_texts(task.name) for task in tasks}
    templates_sha256 = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    run = Run(config, tasks, rates, vocabulary, model, templates_sha256, resuming)
    if resuming:
        run_folder.check_manifest(config.model_dir, run.manifest())
    return run


def _check_model_dir(model_dir: str) -> bool:
    """Whether the folder holds a run to resume; raises UserError where a run could not live in it."""
    if os.path.isfile(model_dir):
        raise UserError(f"MODEL_DIR {model_dir!r} is a file; give a folder")
    existing = os.path.abspath(model_dir)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.access(existing, os.W_OK):
        raise UserError(f"MODEL_DIR {model_dir!r}: {existing!r} is not writable; set --gin.MODEL_DIR to one that is")
    if not os.path.isdir(model_dir) or not os.listdir(model_dir):
        return False
    if not os.path.exists(os.path.join(model_dir, "manifest.json")):
        raise UserError(f"MODEL_DIR {model_dir!r} is not empty and not a run folder (no manifest.json); choose another")
    return True


def _make_vocabulary(config: TrainConfig, tasks: tuple) -> vocabularies.Vocabulary:
    """VOCABULARY is 'train', 'bytes', a SentencePiece .model file, or a Hugging Face name."""
    spec = config.vocabulary
    if spec == "train":
        from t5x_lite.data import registry

        texts = (text for task in tasks for text in registry.texts(task, "train"))
        return vocabularies.train_sentencepiece(texts, config.vocabulary_size)
    if spec == "bytes":
        return vocabularies.byte()
    if spec.endswith(".model"):
        return vocabularies.from_file(spec)
    return vocabularies.from_hugging_face(spec)


def _versions() -> dict[str, str]:
    packages = ("t5x_lite", "jax", "flax", "optax", "orbax-checkpoint", "seqio")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _git_revision() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def describe_plan(run: Run, abstract: TrainState) -> str:
    """What is about to run: devices, tasks, vocabulary, and where every parameter lives."""
    devices = jax.devices()
    config = run.config
    mesh = " x ".join(f"{name} {size}" for name, size in config.partitioner.mesh.shape.items() if size > 1)
    rates = ", ".join(f"{task.name} {rate:.0%}" for task, rate in zip(run.tasks, run.rates, strict=True))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params))
    weights, optimizer = (bytes_per_device(part) / 1e6 for part in (abstract.params, abstract.opt_state))
    lengths = config.task_feature_lengths
    return "\n".join(
        [
            sharding_table(abstract.params),
            "",
            f"devices     {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
            f"{jax.process_count()} process(es), mesh {mesh or 'of one device'}",
            f"model       {parameters:,} parameters, {run.model.dtype}; per device {weights:.1f} MB of parameters, "
            f"{optimizer:.1f} MB of optimizer",
            f"vocabulary  {run.vocabulary.kind}, {run.vocabulary.size} pieces",
            f"tasks       {rates}",
            f"batch       {config.batch_size} rows of {lengths['inputs']} + {lengths['targets']} tokens, "
            f"{config.train_steps} steps",
            f"run folder  {config.model_dir}",
        ]
    )
