"""What a run takes from a packed cache in place of its tasks, and the checks that it is the cache of this run."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5x_lite.data.packed_cache import Cache, open_cache
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.recommendation.knowledge import Knowledge

if TYPE_CHECKING:
    from t5x_lite.training.run import Data, TrainConfig

_AGAIN = "or write it again: python -m t5x_lite.cache"


@dataclasses.dataclass(frozen=True)
class CachedTask:
    """Stands for a task where there is no SeqIO to have it: nothing but its examples is known."""

    name: str


def has_metrics(tasks: Sequence[Any]) -> bool:
    """Whether evaluation can score what is generated: it cannot where SeqIO, and so the tasks, are not there."""
    return not any(isinstance(task, CachedTask) for task in tasks)


def find_data(config: "TrainConfig") -> "Data":
    """The tasks, rates and items of CACHE_DIR. Raises UserError where it is not whole, or not of this run."""
    from t5x_lite.training.run import Data

    cache = open_cache(config.cache_dir)
    _check_settings(config, cache)
    tasks, checked = _tasks(config, cache)
    return Data(tasks, cache.rates, cache.manifest["templates_sha256"], _knowledge(config, cache), cache, checked)


def _check_settings(config: "TrainConfig", cache: Cache) -> None:
    """Raises UserError where the rows were made for another mixture, other lengths, or with PACK otherwise."""
    for macro, wanted, found in (
        ("MIXTURE_OR_TASK_NAME", config.mixture_or_task_name, cache.manifest["mixture"]),
        ("TASK_FEATURE_LENGTHS", dict(config.task_feature_lengths), cache.lengths),
        ("PACK", config.pack, cache.manifest["pack"]),
    ):
        if wanted != found:
            raise UserError(
                f"CACHE_DIR {cache.folder!r} was written with {macro} {found!r} and this configuration has {wanted!r}; "
                f"set {macro} so, {_AGAIN}"
            )


def check_vocabulary(config: "TrainConfig", cache: Cache, vocabulary: Vocabulary) -> None:
    """Raises UserError where this run's vocabulary is another, or would be trained to another size."""
    found = cache.manifest["vocabulary"]
    trained = config.vocabulary == "train"
    asked = (config.vocabulary, config.vocabulary_size)
    if vocabulary.sha256 != found["sha256"] or (trained and asked != (found["setting"], found["setting_size"])):
        raise UserError(
            f"CACHE_DIR {cache.folder!r} was tokenised with VOCABULARY {found['setting']!r} (VOCABULARY_SIZE "
            f"{found['setting_size']}), which is not that of this run, {asked[0]!r} ({asked[1]}); set it so, {_AGAIN}"
        )


def _knowledge(config: "TrainConfig", cache: Cache) -> Knowledge | None:
    """Of the items that the cached tasks are about. Raises UserError where ITEMS gives other ones."""
    if cache.items is None:
        if config.items:
            raise UserError(f"CACHE_DIR {cache.folder!r} has no items, and ITEMS is set; set it to None, {_AGAIN}")
        return None
    knowledge = Knowledge.load(cache.items)
    asked = dataclasses.replace(config.items.knowledge, prompts=knowledge.prompts) if config.items else knowledge
    if not knowledge.sha256 == asked.sha256 == cache.manifest["items_sha256"]:
        raise UserError(f"CACHE_DIR {cache.folder!r} is stale: its items are not those of ITEMS; {_AGAIN[3:]}")
    return knowledge


def _tasks(config: "TrainConfig", cache: Cache) -> tuple[tuple[Any, ...], str]:
    """The tasks of the parts, and what could be checked of them: all, or nothing where SeqIO is not installed.

    Raises UserError for a part that is missing, and for one whose rows or wordings have changed since.
    """
    try:
        from t5x_lite.data import registry
    except ModuleNotFoundError as error:
        names = tuple(CachedTask(part.task) for part in cache.parts)
        return names, f"without {error.name} nobody can check that the tasks have not changed since"
    if config.mixture_or_task_module:
        registry.import_module(config.mixture_or_task_module)
    began = time.monotonic()
    mixture = registry.get_mixture_or_task(config.mixture_or_task_name)
    tasks = registry.tasks_of(mixture)
    _check_fresh(cache, tasks)
    seconds = time.monotonic() - began
    by_name = {task.name: task for task in tasks}
    return tuple(by_name[part.task] for part in cache.parts), f"the tasks are as they were ({seconds:.1f} s)"


def _check_fresh(cache: Cache, tasks: Sequence[Any]) -> None:
    """Raises UserError for a task without a part, or with one that was made from other rows or wordings."""
    from t5x_lite.data import registry

    parts = {part.task: part for part in cache.parts}
    where = f"CACHE_DIR {cache.folder!r}"
    for task in tasks:
        if task.name not in parts:
            raise UserError(f"{where} has no part {task.name!r}, a task of {cache.manifest['mixture']!r}; {_AGAIN[3:]}")
        made_from = parts[task.name].made_from["splits"]
        for split, then in made_from.items():
            now = registry.fingerprint(task, split) if split in task.splits else {}
            changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            if changed:
                raise UserError(
                    f"{where}: part {task.name!r} is stale: the {' and '.join(changed)} of its split {split!r} have "
                    f"changed since it was written; {_AGAIN[3:]}"
                )
    extra = set(parts) - {task.name for task in tasks}
    if extra:
        raise UserError(f"{where} has a part {min(extra)!r}, no task of {cache.manifest['mixture']!r}; {_AGAIN[3:]}")
