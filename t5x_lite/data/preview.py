"""The text of `inspect tasks`: instructions are read before they are trained on."""

import importlib
import pkgutil
from collections.abc import Sequence

import numpy as np

from t5x_lite.data import registry, vocabularies
from t5x_lite.data.pipeline import TrainIterator, load_eval
from t5x_lite.data.token_store import materialize
from t5x_lite.run_folder import read_manifest

_SHOWN = 8
_DEFAULT_LENGTHS = {"inputs": 512, "targets": 128}
_VOCABULARY_SIZE = 2048


def import_tasks(modules: Sequence[str] | None) -> None:
    """Imports the modules named, or every module of the package `tasks` of the working directory."""
    if not modules:
        registry.import_module("tasks")
        package = importlib.import_module("tasks")
        modules = [f"tasks.{found.name}" for found in pkgutil.iter_modules(package.__path__) if not found.ispkg]
    for module in modules:
        registry.import_module(module)


def listing() -> str:
    """A line for each task and mixture: name, kind, splits, number of wordings, where it is from."""
    rows = [("name", "kind", "splits", "seen", "unseen", "registered by")]
    rows += [
        (
            found.name,
            found.kind,
            " ".join(found.splits),
            str(found.seen or ""),
            str(found.unseen or ""),
            found.module,
        )
        for found in registry.registered()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def examples(name: str, split: str, model_dir: str | None) -> str:
    """Rendered, tokenised and packed examples of a task or mixture, with lengths, fill and lost characters."""
    tasks, rates = registry.tasks_and_rates(registry.get_mixture_or_task(name))
    if model_dir:
        vocabulary = vocabularies.load(f"{model_dir}/vocabulary")
        lengths = read_manifest(model_dir)["lengths"]
    else:
        texts = (text for task in tasks for text in registry.texts(task, "train"))
        vocabulary = vocabularies.train_sentencepiece(texts, _VOCABULARY_SIZE)
        lengths = _DEFAULT_LENGTHS
    lines = [f"vocabulary: {vocabulary.kind}, {vocabulary.size} pieces; lengths: {lengths}"]
    stores = []
    for task, rate in zip(tasks, rates, strict=True):
        shown = load_eval(task, split, vocabulary, lengths, _SHOWN if len(tasks) == 1 else 2)
        lines += [
            "",
            f"{task.name} ({rate:.1%} of the mixture, {registry.num_examples(task, split):,} examples)",
        ]
        for i, text in enumerate(shown.texts):
            lines += [
                f"  [{shown.templates[i]}, {shown.template_splits[i]}]",
                *(f"    {line}" for line in text.splitlines()),
                f"    -> {' | '.join(map(str, shown.answers[i]))}",
                f"    tokens {shown.inputs[i]} -> {shown.targets[i]}",
            ]
        stores.append(materialize(task, split, vocabulary, lengths))
        coverage = vocabulary.coverage(registry.texts(task, split))
        lines += [
            f"  tokens: inputs {_percentiles(stores[-1].input_lengths)}, targets "
            f"{_percentiles(stores[-1].target_lengths)}; characters lost: {coverage.share:.2%}"
            + (f" ({' '.join(coverage.examples)})" if coverage.lost else "")
        ]
    iterator = TrainIterator(stores, rates, lengths=lengths, batch_size=1, seed=0)
    fill = iterator.fill()
    row = next(iterator)
    lines += [
        "",
        f"packed: {fill['examples_per_row']:.1f} examples a row; {fill['inputs']:.0%} of input and "
        f"{fill['targets']:.0%} of target positions filled. One row:",
        f"  encoder_input_tokens  {row['encoder_input_tokens'][0].tolist()}",
        f"  encoder_segment_ids   {row['encoder_segment_ids'][0].tolist()}",
        f"  decoder_target_tokens {row['decoder_target_tokens'][0].tolist()}",
        f"  decoder_segment_ids   {row['decoder_segment_ids'][0].tolist()}",
    ]
    return "\n".join(lines)


def _percentiles(lengths: np.ndarray) -> str:
    median, most, longest = np.percentile(lengths, [50, 95, 100]).astype(int)
    return f"median {median}, 95% {most}, longest {longest}"
