"""SeqIO's registries, fed with instruction templates: the one module of the framework that needs TensorFlow."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.data.instructions import BestItems, Instructions, Labels
from t5x_lite.data.sources import Source, code
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError, nearest

# TensorFlow only reads data here; left alone it would take a GPU's memory from JAX.
tf.config.set_visible_devices([], "GPU")


def register_task(
    name: str,
    source: Source,
    templates: Sequence[InstructionTemplate],
    *,
    metrics: Sequence[Callable],
    few_shot: int = 0,
    renderings_per_row: int | None = None,
    answers_field: str | None = None,
    answer_with: Labels | BestItems | None = None,
) -> seqio.Task:
    """Registers a source x its templates as the SeqIO task `name`.

    'train' has each row in its seen wordings (`renderings_per_row` of them, default all), every other split each
    row in all wordings. `few_shot` examples of the train split stand before each, never the row itself. Metrics
    compare with the row's `answers_field`, a list of acceptable answers, or with the rendered target. The model answers
    in text of its own, or as `answer_with` says. Features are declared with bytes as vocabulary; a run puts its own
    in (`with_vocabulary`).

    Raises UserError for a name that is taken, templates that repeat a name or lack a seen one, a field that rows
    in memory lack, and numbers out of range.
    """
    instructions = Instructions(
        name, source, tuple(templates), few_shot, renderings_per_row, answers_field, answer_with
    )
    instructions.check()
    if name in seqio.TaskRegistry.names():
        raise UserError(f"task {name!r} is registered already, by {_module_of(name)}; choose another name")
    features = {key: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for key in ("inputs", "targets")}
    try:
        task = seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(functools.partial(_dataset, instructions), splits=source.splits),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features=features,
            metric_fns=list(metrics),
        )
        _ = task.metric_fns  # SeqIO looks at their parameters only when asked
    except ValueError as error:
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        raise UserError(f"task {name!r}: {error}") from None
    _INSTRUCTIONS[name] = instructions
    _MODULES[name] = _caller()
    return task


def register_mixture(
    name: str,
    tasks: Sequence[str],
    *,
    rates: str | Mapping[str, float] = "proportional",
    cap: int | None = None,
    temperature: float = 1.0,
) -> seqio.Mixture:
    """Registers tasks and mixtures under one name, each drawn from at a rate.

    A mapping of names to rates; or 'equal'; 'proportional' to the number of examples, at most `cap` counting (FLAN's
    rule); 'temperature': the same to the power of 1/temperature (mT5). Raises UserError for an unknown task or rule.
    """
    rules: dict[str, Callable[[seqio.Task], float] | None] = {
        "equal": None,
        "proportional": lambda task: min(num_examples(task, "train"), cap or sys.maxsize),
        "temperature": lambda task: min(num_examples(task, "train"), cap or sys.maxsize) ** (1.0 / temperature),
    }
    if isinstance(rates, str) and rates not in rules:
        raise UserError(f"mixture {name!r}: rates {rates!r}{nearest(rates, rules)}; one of {', '.join(rules)}")
    if temperature <= 0 or (cap is not None and cap < 1):
        raise UserError(f"mixture {name!r}: temperature {temperature} and cap {cap} must be positive")
    members = [get_mixture_or_task(task) for task in tasks]
    if name in seqio.MixtureRegistry.names():
        raise UserError(f"mixture {name!r} is registered already, by {_module_of(name)}; choose another name")
    if not isinstance(rates, str):
        without = next((task for task in tasks if task not in rates), None)
        if without is not None:
            raise UserError(f"mixture {name!r} has no rate for {without!r}{nearest(without, rates)}; give it one")
        mixture = seqio.MixtureRegistry.add(name, [(task, rates[task]) for task in tasks])
    elif rates == "equal":
        mixture = seqio.MixtureRegistry.add(name, list(tasks), default_rate=1.0)
    else:  # SeqIO has no rule for a mixture's size: its tasks count one by one
        tasks = sorted({task.name for member in members for task in tasks_and_rates(member)[0]})
        mixture = seqio.MixtureRegistry.add(name, list(tasks), default_rate=rules[rates])
    _MODULES[name] = _caller()
    return mixture


def instructions_of(task: seqio.Task) -> Instructions | None:
    """What `register_task` put behind a task; None for other people's tasks and for altered copies of ours."""
    registered_as_is = task.name in _INSTRUCTIONS and task is seqio.TaskRegistry.get(task.name)
    return _INSTRUCTIONS[task.name] if registered_as_is else None


def num_examples(task: seqio.Task, split: str) -> int:
    """Examples of a split: rendered ones of our tasks, input examples of other people's."""
    instructions = instructions_of(task)
    if instructions:
        return instructions.size(split)
    return task.num_input_examples(split) or sum(1 for _ in task.get_dataset(None, split, shuffle=False))


def fingerprint(task: seqio.Task, split: str) -> dict[str, str]:
    """Hashes of what a split's examples follow from: our tasks' rows and wordings, other people's code."""
    instructions = instructions_of(task)
    if instructions:
        return instructions.fingerprint(split)
    source = task.source
    made_by = getattr(source, "_dataset_fn", None)
    if made_by:
        asked = code(made_by)
    else:
        asked = getattr(getattr(source, "tfds_dataset", source), "name", getattr(source, "_split_to_filepattern", None))
    texts = {
        "rows": [type(source).__qualname__, str(asked), source.num_input_examples(split) if made_by else None],
        "preprocessors": [code(preprocessor) for preprocessor in task.preprocessors],
    }
    return {name: hashlib.sha256(json.dumps(text).encode()).hexdigest() for name, text in texts.items()}


def get_mixture_or_task(name: str) -> seqio.Mixture | seqio.Task:
    """The registered task or mixture; UserError with the nearest names and where they are from."""
    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name in names:
        return seqio.get_mixture_or_task(name)
    close = nearest(name, names)
    where = sorted({_module_of(found) for found in names if repr(found) in close})
    raise UserError(
        f"tasks: no task or mixture {name!r}{close}{f' ({chr(44).join(where)})' if where else ''}; {len(names)} are "
        "registered, `python -m t5x_lite.inspect tasks` lists them; set MIXTURE_OR_TASK_MODULE to the module of yours"
    )


def tasks_and_rates(mixture: seqio.Mixture | seqio.Task) -> tuple[tuple[seqio.Task, ...], tuple[float, ...]]:
    """The tasks of a mixture by name, and their rates, which sum to 1."""
    if isinstance(mixture, seqio.Task):
        return (mixture,), (1.0,)
    rates = [mixture.get_rate(task) for task in mixture.tasks]
    return tasks_of(mixture), tuple(rate / sum(rates) for rate in rates)


def tasks_of(mixture: seqio.Mixture | seqio.Task) -> tuple[seqio.Task, ...]:
    return (mixture,) if isinstance(mixture, seqio.Task) else tuple(mixture.tasks)


def with_vocabulary(task: seqio.Task, vocabulary: Vocabulary) -> seqio.Task:
    """The task with a run's vocabulary in place of the declared one; the registered task stays as it is."""
    declared = vocabulary.to_seqio()
    features = {key: dataclasses.replace(feature, vocabulary=declared) for key, feature in task.output_features.items()}
    return task.replace(output_features=features)


def drawn(count: int, most: int | None) -> np.ndarray:
    """At most `most` of `count` examples, evenly drawn, the same ones every time, in order."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.Generator(np.random.Philox(count)).permutation(count)[:most])


def sampled(task: seqio.Task, split: str, max_examples: int) -> seqio.Task:
    """The task over at most `max_examples` of its source's examples, evenly drawn, the same ones every time."""
    raw = task.source.get_dataset(split=split, shuffle=False)
    count = int(raw.cardinality())
    if count < 0:  # a file or a filter does not say
        count = int(raw.reduce(np.int64(0), lambda total, _: total + 1))
    if count <= max_examples:
        return task
    chosen = np.isin(np.arange(count), drawn(count, max_examples))

    def draw(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed
        keep = tf.constant(chosen)
        return raw.enumerate().filter(lambda number, _: keep[number]).map(lambda _, example: example)

    return task.replace(source=seqio.FunctionDataSource(draw, splits=[split]))


def texts(task: seqio.Task, split: str) -> Iterator[str]:
    """The text of every example's inputs and targets, as it stands before it is tokenised."""
    instructions = instructions_of(task)
    if instructions:
        for example in instructions.render(split):
            yield from (example["inputs"], example["targets"])
        return
    for example in task.get_dataset(None, split=split, shuffle=False).as_numpy_iterator():
        for name, feature in task.output_features.items():
            text = example.get(f"{name}_pretokenized")
            yield text.decode() if text is not None else feature.vocabulary.decode(example[name].tolist())


def import_module(name: str) -> None:
    """Imports the module that registers a user's tasks, from the working directory too.

    Raises UserError where it is not found. Errors inside of it are the user's to read, and pass through.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(missing + "."):
            raise
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE {name!r}: no module {missing!r} in {os.getcwd()} or on PYTHONPATH; "
            "write it as in an import, like tasks.qa"
        ) from None


def templates_sha256(tasks: Sequence[seqio.Task]) -> str:
    """The hash in a run's manifest of its tasks' wordings."""
    texts = {task.name: template_texts(task.name) for task in tasks}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def template_texts(name: str) -> list[tuple[str, str, str, str]]:
    """What the manifest's hash of a task's wordings is taken over; empty for tasks of other people."""
    if name not in _INSTRUCTIONS:
        return []
    return [dataclasses.astuple(template) for template in _INSTRUCTIONS[name].templates]


@dataclasses.dataclass(frozen=True)
class Registered:
    """One line of `inspect tasks`."""

    name: str
    kind: str
    splits: tuple[str, ...]
    seen: int
    unseen: int
    module: str


def registered() -> list[Registered]:
    """All tasks, then all mixtures, by name."""
    found = []
    for name in sorted(seqio.TaskRegistry.names()):
        templates = _INSTRUCTIONS[name].templates if name in _INSTRUCTIONS else ()
        seen = sum(template.split == "seen" for template in templates)
        splits = tuple(seqio.TaskRegistry.get(name).splits)
        found.append(Registered(name, "task", splits, seen, len(templates) - seen, _module_of(name)))
    for name in sorted(seqio.MixtureRegistry.names()):
        tasks = seqio.MixtureRegistry.get(name).tasks
        found.append(Registered(name, f"mixture of {len(tasks)}", (), 0, 0, _module_of(name)))
    return found


_INSTRUCTIONS: dict[str, Instructions] = {}
_MODULES: dict[str, str] = {}


def _dataset(instructions: Instructions, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """All rendered examples as one dataset; columns, since a Python generator is ten times slower in tf.data."""
    del shuffle_files, seed  # the order of rows is fixed; the training pipeline shuffles
    examples = list(instructions.render(split))
    columns = {
        key: tf.constant([example[key] for example in examples], tf.string)
        for key in ("inputs", "targets", "template", "template_split")
    }
    answers = [answer for example in examples for answer in example["answers"]]
    lengths = [len(example["answers"]) for example in examples]
    ragged = tf.RaggedTensor.from_row_lengths(tf.constant(answers, tf.string), lengths)
    return tf.data.Dataset.from_tensor_slices(columns | {"answers": ragged})


def _caller() -> str:
    """The file that called this module, for error messages and listings."""
    frame: Any = inspect.currentframe()
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return os.path.relpath(frame.f_code.co_filename) if frame else "?"


def _module_of(name: str) -> str:
    return _MODULES.get(name, "plain SeqIO")
