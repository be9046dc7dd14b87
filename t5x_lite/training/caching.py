"""The packed cache of a configuration: what `python -m t5x_lite.cache` does."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from t5x_lite import interop
from t5x_lite.data import cache_pipeline
from t5x_lite.data.cache_format import (
    FORMAT,
    ITEMS,
    MANIFEST,
    VOCABULARY,
    Part,
    dtype_of,
    read_part,
    write_json,
)
from t5x_lite.data.token_store import check_trainable
from t5x_lite.errors import UserError
from t5x_lite.run_folder import versions
from t5x_lite.training.loop import warn_of_lost_characters
from t5x_lite.training.run import TrainConfig, find_data, make_vocabulary


def write_cache(config: TrainConfig, output: str, beam_flags: Sequence[str]) -> None:
    """Writes the parts that are not there as they would be written now, then the manifest.

    Raises UserError for a folder that is no cache, tasks that cannot be trained on, and what a worker says.
    """
    from t5x_lite.data import registry

    began = time.monotonic()
    folder = epath.Path(output)
    _check_folder(folder, config)
    data = find_data(dataclasses.replace(config, cache_dir=None))
    source = None
    if config.vocabulary == config.initial_checkpoint_path:
        source = interop.open_source(config.initial_checkpoint_path)
    vocabulary = make_vocabulary(config, data, source)
    warn_of_lost_characters(data.tasks, vocabulary)
    lengths = dict(config.task_feature_lengths)
    made_from = {}
    for task in data.tasks:
        check_trainable(task, "train")
        splits = {split: registry.fingerprint(task, split) for split in splits_of(config, task)}
        made_from[task.name] = {
            "lengths": lengths,
            "pack": config.pack,
            "seed": config.seed,
            "splits": splits,
            "vocabulary": vocabulary.sha256,
        }

    (folder / MANIFEST).unlink(missing_ok=True)  # no cache until it is whole again
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.save(folder / VOCABULARY)
    if data.knowledge:
        (folder / ITEMS).mkdir(exist_ok=True)
        data.knowledge.save(folder / ITEMS)
    written = [task for task in data.tasks if _existing(folder, task.name, made_from[task.name]) is None]
    for task in written:
        (folder / task.name / MANIFEST).unlink(missing_ok=True)
    sizes = {
        (task.name, split): registry.num_examples(task, split) for task in written for split in splits_of(config, task)
    }
    print(f"caching {len(written)} of {len(data.tasks)} tasks, {sum(sizes.values()):,} examples", flush=True)
    if written:
        recipe = cache_pipeline.make_recipe(
            output,
            made_from,
            sizes,
            vocabulary,
            lengths,
            module=config.mixture_or_task_module,
            pack=config.pack,
            seed=config.seed,
        )
        cache_pipeline.run(recipe, beam_flags)
    parts = [_finished(folder, task.name) for task in data.tasks]
    manifest = {
        "format": FORMAT,
        "mixture": config.mixture_or_task_name,
        "parts": {part.task: part.sha256 for part in parts},
        "rates": data.rates,
        "lengths": lengths,
        "pack": config.pack,
        "dtype": dtype_of(vocabulary.size, lengths),
        "templates_sha256": data.templates_sha256,
        "vocabulary": {
            "kind": vocabulary.kind,
            "sha256": vocabulary.sha256,
            "size": vocabulary.size,
            "setting": config.vocabulary,
            "setting_size": config.vocabulary_size,
        },
        "versions": versions(),
    }
    if data.knowledge:
        manifest["items_sha256"] = data.knowledge.sha256
    write_json(folder / MANIFEST, manifest)
    print(_summary(parts, lengths, time.monotonic() - began), flush=True)


def splits_of(config: TrainConfig, task: Any) -> list[str]:
    """'train', and what is evaluated while training, where the task has it."""
    return list(dict.fromkeys(split for split in ("train", config.eval_split) if split in task.splits))


def _check_folder(folder: epath.Path, config: TrainConfig) -> None:
    if folder.is_file():
        raise UserError(f"--output {str(folder)!r} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / VOCABULARY).is_dir():
        raise UserError(f"--output {str(folder)!r} is not empty and no packed cache; choose another folder")
    if config.items and "://" in str(folder):
        raise UserError(f"--output {str(folder)!r}: a catalogue is written to a mounted folder only; mount the bucket")


def _existing(folder: epath.Path, task: str, made_from: Mapping[str, Any]) -> Part | None:
    """The part, if it is whole and what would be written now."""
    try:
        part = read_part(folder, task)
    except UserError:
        return None
    return part if part.made_from == made_from else None


def _finished(folder: epath.Path, task: str) -> Part:
    """The part, its folder cleared of what an older one or a killed worker left. UserError where it is empty."""
    if not (folder / task / MANIFEST).exists():
        raise UserError(f"task {task!r} has no examples to cache")
    part = read_part(folder, task)
    if "train" not in part.splits:
        raise UserError(f"task {task!r}: its split 'train' has no examples")
    known = {MANIFEST, *(shard.name for shards in part.splits.values() for shard in shards)}
    for path in (folder / task).iterdir():
        if path.name not in known:
            path.unlink()
    return part


def _summary(parts: Sequence[Part], lengths: Mapping[str, int], seconds: float) -> str:
    lines = [f"{'task':28} {'split':12} {'examples':>10} {'rows':>9} {'a row':>6} {'inputs':>7} {'targets':>8}"]
    for part in parts:
        for split in part.splits:
            rows, examples, inputs, targets = (
                part.total(split, count) for count in ("rows", "examples", "input_tokens", "target_tokens")
            )
            fill = f"{inputs / rows / lengths['inputs']:7.1%} {targets / rows / lengths['targets']:8.1%}"
            lines.append(f"{part.task:28} {split:12} {examples:10,} {rows:9,} {examples / rows:6.1f} {fill}")
    return "\n".join([*lines, f"done in {seconds:.1f} s"])
