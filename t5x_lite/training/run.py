"""A run: what gin asked for, and everything that is built from it before the first step."""

import dataclasses
import functools
import itertools
import math
import os
import string
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from etils import epath

from t5x_lite import interop, run_folder
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.data.instructions import BestItems
from t5x_lite.data.packed_cache import Cache
from t5x_lite.data.templates import SPLITS
from t5x_lite.decoding.trie import Trie, build_trie
from t5x_lite.errors import UserError
from t5x_lite.files import is_remote
from t5x_lite.interop import Source
from t5x_lite.interop.growth import NewTokens, grown
from t5x_lite.interop.hugging_face import HuggingFaceSource
from t5x_lite.model import T5Config, abstract_params
from t5x_lite.model.config import ARCHITECTURE_SIZES
from t5x_lite.model.lora import is_adapter
from t5x_lite.model.names import named
from t5x_lite.partitioning import VOCAB_MULTIPLE, Partitioner, bytes_per_device, sharding_table
from t5x_lite.recommendation.data import RecommendationData
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.training import from_cache
from t5x_lite.training.state import Params, TrainState
from t5x_lite.training.trainable import ADAPTERS_ONLY, Rules, trained_names

_TEXTS_ABOUT_ITEMS = 40_000  # of a task; without the items in them, the texts of a catalogue repeat themselves


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
    cache_dir: str | None = None
    vocabulary: str = "train"
    vocabulary_size: int = 4096
    initial_checkpoint_path: str | None = None
    assignment_map: list | None = None
    trainable: list | None = None
    items: RecommendationData | None = None
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
    step_timeout: float = 600.0

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
            "keep_checkpoints",
            "eval_examples",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name.upper()} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.step_timeout < math.inf:
            raise UserError(f"STEP_TIMEOUT is {self.step_timeout}; it is a number of seconds, or 0 to watch nothing")
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
class Data:
    """What a run trains on: tasks, their rates, the hash of their wordings, and what is known of items, if anything.

    With a cache the tasks' examples come from there, and `checked` says what could be checked of it.
    """

    tasks: tuple
    rates: tuple[float, ...]
    templates_sha256: str
    knowledge: Knowledge | None
    cache: Cache | None = None
    checked: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's tasks, vocabulary and model; `resuming` when its folder already held checkpoints."""

    config: TrainConfig
    data: Data
    vocabulary: vocabularies.Vocabulary
    model: T5Config
    source: Source | None
    resuming: bool

    @property
    def tasks(self) -> tuple:
        return self.data.tasks

    @property
    def rates(self) -> tuple[float, ...]:
        return self.data.rates

    @functools.cached_property
    def knowledge(self) -> Knowledge:
        """Of a run that recommends. Raises UserError for one that does not."""
        if self.data.knowledge is None:
            raise UserError(
                f"{self.config.mixture_or_task_name!r} recommends items, and ITEMS is None: set it to "
                "@recommendation_data()"
            )
        return self.data.knowledge

    @functools.cached_property
    def trie(self) -> Trie:
        return build_trie(self.knowledge.index.sequences(self.vocabulary))

    @property
    def lengths(self) -> dict[str, int]:
        return dict(self.config.task_feature_lengths)

    @property
    def trainable(self) -> Rules:
        """Rules of `trained_names`; a model with adapters trains those unless told otherwise."""
        return self.config.trainable or (ADAPTERS_ONLY if self.model.lora else ())

    @property
    def assignment_map(self) -> list[tuple[str, str | None]]:
        """Rules of `restore_partial`; no source has this run's adapters."""
        return [*([(r".*/lora_[ab]", None)] if self.model.lora else []), *(self.config.assignment_map or ())]

    @property
    def trains_all(self) -> bool:
        names = named(abstract_params(self.model))
        return len(trained_names(names, self.trainable)) == len(names)

    def manifest(self) -> dict[str, Any]:
        manifest = run_folder.describe_model(self.model, self.vocabulary, self.lengths) | {
            "mixture_or_task": self.config.mixture_or_task_name,
            "tasks": sorted(task.name for task in self.tasks),
            "best_metric": self.config.best_metric,
            "templates_sha256": self.data.templates_sha256,
        }
        if self.data.knowledge:
            manifest["items_sha256"] = self.knowledge.sha256
        if self.source:
            manifest["hugging_face"] = self.source.hugging_face
            if not self.trains_all:
                path = _base_path(self.config.initial_checkpoint_path, self.source)
                manifest["base"] = {"path": path, "fingerprint": interop.fingerprint(self.source)}
        return manifest


def prepare(config: TrainConfig) -> Run:
    """Finds the tasks, makes or reads the vocabulary, sizes the model. Writes nothing.

    Raises UserError for an unknown module or task, a folder that cannot be written, and a folder of another run.
    """
    resuming = _check_model_dir(config.model_dir)
    data = from_cache.find_data(config) if config.cache_dir else find_data(config)
    partial = bool(config.trainable or config.model.lora)
    if partial and not config.initial_checkpoint_path:
        raise UserError(
            "TRAINABLE or LORA trains a part of the model, and INITIAL_CHECKPOINT_PATH is None: set it to the model "
            "whose other parameters are kept"
        )
    source = None
    # A run that was stopped before its first checkpoint begins again.
    begins = not resuming or Checkpoints(config.model_dir).latest_step() is None
    if config.initial_checkpoint_path and (partial or begins):
        source = interop.open_source(config.initial_checkpoint_path)
        source = _with_items(source, data.knowledge) if data.knowledge else source
    if resuming:
        vocabulary = vocabularies.load(os.path.join(config.model_dir, "vocabulary"))
        vocab_size = run_folder.read_manifest(config.model_dir)["model"]["vocab_size"]
    else:
        vocabulary = make_vocabulary(config, data, source)
        # A model keeps the rows above its vocabulary that it was trained with: Flan-T5 has 28.
        same = source and config.vocabulary == config.initial_checkpoint_path
        vocab_size = max(vocabulary.size, source.config.vocab_size) if same else vocabulary.size
    if data.cache:
        from_cache.check_vocabulary(config, data.cache, vocabulary)
    model = dataclasses.replace(config.model, vocab_size=vocab_size, vocab_multiple=VOCAB_MULTIPLE)
    if source and not config.assignment_map:  # which may mean what it does
        _check_same_model(config, model, source)
        if not resuming:
            _check_same_vocabulary(config, model, vocabulary, source)
    run = Run(config, data, vocabulary, model, source, resuming)
    _check_rules(run)
    if resuming:
        run_folder.check_manifest(config.model_dir, run.manifest())
    return run


def _check_model_dir(model_dir: str) -> bool:
    """Whether the folder holds a run to resume; raises UserError where a run could not live in it."""
    folder = epath.Path(model_dir)
    if folder.is_file():
        raise UserError(f"MODEL_DIR {model_dir!r} is a file; give a folder")
    if not is_remote(model_dir):
        existing = os.path.abspath(model_dir)
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        if not os.access(existing, os.W_OK):
            raise UserError(
                f"MODEL_DIR {model_dir!r}: {existing!r} is not writable; set --gin.MODEL_DIR to one that is"
            )
    if (folder / run_folder.MANIFEST).exists():
        return True
    # A run that was killed while its folder was being written begins again.
    if folder.is_dir() and not all(run_folder.comes_before_manifest(path.name) for path in folder.iterdir()):
        raise UserError(f"MODEL_DIR {model_dir!r} is not empty and not a run folder (no manifest.json); choose another")
    return False


def find_data(config: TrainConfig) -> Data:
    """The tasks as they are registered. Raises UserError for an unknown module or task."""
    from t5x_lite.data import registry  # imports TensorFlow, which a configuration alone does not need

    if config.mixture_or_task_module:
        registry.import_module(config.mixture_or_task_module)
    tasks, rates = registry.tasks_and_rates(registry.get_mixture_or_task(config.mixture_or_task_name))
    knowledge = dataclasses.replace(config.items.knowledge, prompts=_prompts(tasks)) if config.items else None
    return Data(tasks, rates, registry.templates_sha256(tasks), knowledge)


def make_vocabulary(config: TrainConfig, data: Data, source: Source | None) -> vocabularies.Vocabulary:
    """VOCABULARY is 'train', 'bytes', a SentencePiece .model file, a folder, or a Hugging Face name.

    Above it come the tokens that items are written with. What a cache's was trained on is not there to train it again.
    """
    index = data.knowledge.index if data.knowledge else None
    if config.vocabulary == "train":
        if data.cache:
            return data.cache.vocabulary
        from t5x_lite.data import registry

        texts = (registry.texts(task, "train") for task in data.tasks)
        if index:
            texts = (map(index.words, itertools.islice(some, _TEXTS_ABOUT_ITEMS)) for some in texts)
        vocabulary = vocabularies.train_sentencepiece(itertools.chain.from_iterable(texts), config.vocabulary_size)
    elif source and config.vocabulary == config.initial_checkpoint_path:
        vocabulary = source.vocabulary()
    else:
        vocabulary = interop.open_vocabulary(config.vocabulary)
    item_tokens = index.tokens if index else ()
    return vocabulary.with_tokens([token for token in item_tokens if token not in vocabulary.whole_tokens])


def _with_items(source: Source, knowledge: Knowledge) -> Source:
    """The source with the tokens of items that it lacks: one that is an item starts as the mean of its title's."""
    index, vocabulary = knowledge.index, source.vocabulary()
    titles = dict(zip(index.texts, knowledge.catalogue.titles, strict=True))
    texts = {token: titles.get(token, "") for token in index.tokens if token not in vocabulary.whole_tokens}
    return grown(source, source.config, vocabulary, NewTokens(texts))[2] if texts else source


def _check_same_model(config: TrainConfig, model: T5Config, source: Source) -> None:
    """Refuses weights of another size before any is read."""
    for name in (*ARCHITECTURE_SIZES, "activations", "tie_embeddings", "relative_bias_per_layer"):
        ours, theirs = getattr(model, name), getattr(source.config, name)
        if ours != theirs:
            raise UserError(
                f"INITIAL_CHECKPOINT_PATH {config.initial_checkpoint_path!r} is a model with {name} {theirs} and this "
                f"configuration has {ours}; include the gin/models file of its size and kind"
            )


def _check_same_vocabulary(
    config: TrainConfig, model: T5Config, vocabulary: vocabularies.Vocabulary, source: Source
) -> None:
    """Refuses embeddings of other tokens; a vocabulary that was just trained has the same size by chance only."""
    rows = source.config.vocab_rows
    trained = config.vocabulary == "train"
    if model.vocab_rows != rows or (trained and source.vocabulary().sha256 != vocabulary.sha256):
        raise UserError(
            f"VOCABULARY {config.vocabulary!r} has {vocabulary.size} tokens that are not those of "
            f"INITIAL_CHECKPOINT_PATH {config.initial_checkpoint_path!r}, a model with {rows} rows; "
            "set VOCABULARY = %INITIAL_CHECKPOINT_PATH"
        )


def _check_rules(run: Run) -> None:
    """Says what is wrong with LORA, TRAINABLE and ASSIGNMENT_MAP before any work is done."""
    try:
        names = named(abstract_params(run.model))
    except ValueError as error:  # a target that names no kernel
        raise UserError(str(error)) from None
    trained = trained_names(names, run.trainable)
    if not run.source:
        return
    for name, origin in interop.assign(names, run.assignment_map).items():
        if name in trained or origin == name:
            continue
        if is_adapter(name):
            raise UserError(
                f"TRAINABLE does not train {name!r}: an adapter starts at random, and what is not trained is not "
                "saved; give it True"
            )
        raise UserError(
            f"ASSIGNMENT_MAP gives {name!r} another origin and TRAINABLE does not train it: a resumed run could "
            "not find it again; train it, or convert the checkpoint first (python -m t5x_lite.convert)"
        )


def _prompts(tasks: tuple) -> dict[str, tuple[str, ...]]:
    """The wordings, seen ones first, of tasks answered by items, that need a history, interests, or both.

    None of what has unseen wordings alone: the model was not trained on such.
    """
    from t5x_lite.data import registry

    asking = [
        instructions
        for instructions in map(registry.instructions_of, tasks)
        if instructions and isinstance(instructions.answer_with, BestItems)
    ]
    found: dict[str, dict[str, None]] = {}
    for split in SPLITS:
        for template in (template for instructions in asking for template in instructions.templates):
            fields = {name for _, name, _, _ in string.Formatter().parse(template.inputs) if name}
            name = "+".join(sorted(fields))
            wanted = fields and fields <= {"history", "interests"} and (split == "seen" or name in found)
            if template.split == split and wanted:
                found.setdefault(name, {})[template.inputs] = None
    return {name: tuple(wordings) for name, wordings in found.items()}


def _base_path(given: str, source: Source) -> str:
    """Where a base model is found again: a hub's name stays one, a folder becomes absolute."""
    if isinstance(source, HuggingFaceSource) and not os.path.exists(given):
        return given
    return os.path.abspath(source.where) if os.path.exists(source.where) else source.where


def describe_plan(run: Run, abstract: TrainState, frozen: Params) -> str:
    """What is about to run: devices, tasks, vocabulary, and where every parameter lives."""
    devices = jax.devices()
    config = run.config
    mesh = " x ".join(f"{name} {size}" for name, size in config.partitioner.mesh.shape.items() if size > 1)
    rates = ", ".join(f"{task.name} {rate:.0%}" for task, rate in zip(run.tasks, run.rates, strict=True))
    trained, kept = (sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for part in (abstract.params, frozen))
    of_which = f"; trained {trained:,} ({trained / (trained + kept):.2%})" if kept else ""
    weights, optimizer = (bytes_per_device(part) / 1e6 for part in ((abstract.params, frozen), abstract.opt_state))
    lengths = config.task_feature_lengths
    return "\n".join(
        [
            sharding_table(abstract.params),
            "",
            f"devices     {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
            f"{jax.process_count()} process(es), mesh {mesh or 'of one device'}",
            f"model       {trained + kept:,} parameters{of_which}, {run.model.dtype}; per device {weights:.1f} MB of "
            f"parameters, {optimizer:.1f} MB of optimizer",
            f"vocabulary  {run.vocabulary.kind}, {run.vocabulary.size} pieces",
            f"tasks       {rates}",
            f"batch       {config.batch_size} rows of {lengths['inputs']} + {lengths['targets']} tokens, "
            f"{config.train_steps} steps",
            *([f"cache       {config.cache_dir}; {run.data.checked}"] if run.data.cache else []),
            f"run folder  {config.model_dir}",
        ]
    )
