"""Saves and restores a run: MODEL_DIR/checkpoints/N, one whole folder a step. Orbax is behind this file only.

A step holds `params` and `training` (every other field of the train state) as two Orbax trees, so that
weights are read without the optimizer, and, in its metadata, the data iterator's state and the metrics.
"""

import collections
import dataclasses
import datetime
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite.errors import UserError, nearest
from t5x_lite.files import absolute, is_remote
from t5x_lite.model.names import named, nested
from t5x_lite.run_folder import nearest_folder, read_manifest

PyTree = Any

_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's own suffix: it takes no such folder for a step
_COMMITTED = "commit_success.txt"  # and what it puts into a whole step in object storage, which cannot rename folders
_STEP_NAMES = ocp.path.step.standard_name_format()


class Checkpoints:
    """The checkpoints of one run folder.

    After each save the last `keep_last` steps stay, and the best one by `best_metric` (the later of equals).
    Opening a folder changes nothing in it; the first save clears away what a killed process left unfinished.
    Every process of a run makes the same calls in the same order. Call `close` before the process ends: Orbax
    writes in the background, and an interpreter that exits meanwhile loses the step being written.
    """

    def __init__(
        self,
        run_dir: epath.PathLike,
        *,
        keep_last: int = 3,
        best_metric: str | None = None,
        best_mode: str = "max",
    ):
        if keep_last < 1:
            raise UserError(f"KEEP_CHECKPOINTS is {keep_last}; it must be at least 1, or nothing could be resumed")
        if best_mode not in ("max", "min"):
            raise UserError(f"best_mode is {best_mode!r}; it is 'max' or 'min'")
        self._folder = absolute(run_dir) / "checkpoints"
        self._keep_last = keep_last
        self._best_metric = best_metric
        self._sign = 1 if best_mode == "max" else -1
        self._records: dict[int, dict] = {}
        self._saving: tuple[int, float, ocp.AsyncResponse] | None = None  # step, time of its start, what to wait for
        self._saved: int | None = None
        self.background_seconds: float | None = None  # the last whole save took, from its start; of the first process
        self._clean = False

    def save(
        self,
        step: int,
        state: PyTree,
        data_state: Mapping[str, int],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving a train state, a dataclass with a `params` field, and returns.

        The state may be donated right after: its arrays have been copied. A step that is there already is
        left as it is. Raises UserError where metrics come without the one that ranks steps, once the step is on its
        way, and raises the error of the previous save if that failed.
        """
        self.wait()
        # What this process saved counts before what it sees: the first could see its step sooner than the others do,
        # and leave them alone with another save of it.
        if step == self._saved or step in self.steps():
            return
        self._clear_leftovers()
        record = {
            "data_state": dict(data_state),
            "metrics": {k: float(v) for k, v in (metrics or {}).items()},
        }
        context = ocp.Context()
        # Arrays are packed a few at a time: all at once would be a second copy of the state in host memory. Orbax
        # refuses an array as large as the limit, hence the 1.
        context.memory_options.write_concurrent_bytes = 1 + max(leaf.nbytes for leaf in jax.tree.leaves(state))
        began = time.time()
        with context:
            saving = ocp.save_checkpointables_async(self._path(step), _parts(state), custom_metadata=record)
        self._saving = step, began, saving
        self._records[step] = record
        # Not before: the steps until here would be lost.
        if metrics is not None and self._best_metric is not None and self._best_metric not in metrics:
            close = nearest(self._best_metric, metrics)
            measured = ", ".join(sorted(metrics))
            raise UserError(f"BEST_METRIC {self._best_metric!r} is not measured{close}; measured are: {measured}")

    def wait(self) -> None:
        """Returns when the last save is whole on disk and the steps that it supersedes are gone."""
        if self._saving is None:
            return
        (step, began, saving), self._saving = self._saving, None
        saving.result()
        self._saved = step
        if jax.process_index() == 0:  # the others must not look at steps that it may be removing
            committed = ocp.checkpointables_metadata(self._path(step)).commit_timestamp_nsecs
            self.background_seconds = committed / 1e9 - began
            self._prune()

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()

    def give_up(self) -> None:
        """Lets the last save go: without the other processes it cannot become whole."""
        self._saving = None

    def steps(self) -> list[int]:
        """The whole steps on disk, ascending; a save under way is not among them."""
        return _steps(self._folder)

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step whose `best_metric` is best; None without a metric to rank by, or where no step has it."""
        if self._best_metric is None:
            return None
        scores = {step: self._score(step) for step in self.steps()}
        ranked = [step for step, score in scores.items() if score > -math.inf]
        return max(ranked, key=lambda step: (scores[step], step), default=None)

    def preferred_step(self) -> int | None:
        """The step to use where none is asked for: the best by the run's metric, else the latest."""
        best = self.best_step()
        return self.latest_step() if best is None else best

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, int]]:
        """Reads a step (default: the latest) as (train state, data iterator's state).

        Leaves of `abstract_state` have shape, dtype and the sharding wanted now, whatever mesh and number of
        devices wrote them. Raises UserError where there is no such step or it is of another model.
        """
        step = self.existing_step(step)
        loaded = _load(self._path(step), _parts(abstract_state))
        state = dataclasses.replace(abstract_state, params=loaded["params"], **loaded["training"])
        return state, self._record(step)["data_state"]

    def metadata(self, step: int | None = None) -> dict[str, PyTree]:
        """{"params", "training"}: what a step holds, as trees of jax.ShapeDtypeStruct; reads no array."""
        return jax.tree.map(_shape, _saved(self._path(self.existing_step(step)), "params", "training"))

    def _path(self, step: int) -> epath.Path:
        return self._folder / _STEP_NAMES.build_name(step)

    def existing_step(self, step: int | None) -> int:
        """This step, or the latest; UserError where there is none."""
        return _find_step(self._folder, step)

    def _record(self, step: int) -> dict:
        if step not in self._records:
            self._records[step] = ocp.checkpointables_metadata(self._path(step)).custom_metadata
        return self._records[step]

    def _score(self, step: int) -> float:
        value = self._record(step)["metrics"].get(self._best_metric, math.nan)
        return -math.inf if math.isnan(value) else self._sign * value

    def _prune(self) -> None:
        steps = self.steps()
        keep = {*steps[-self._keep_last :], self.best_step()}
        for step in steps:
            if step not in keep and jax.process_index() == 0:
                _remove(self._path(step))

    def _clear_leftovers(self) -> None:
        """Done by who writes and not by who opens, since an open folder may be another process's to write."""
        if self._clean or jax.process_index() != 0:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        whole = {self._path(step).name for step in self.steps()}
        for path in self._folder.iterdir():
            if _UNFINISHED in path.name or (is_remote(path) and path.name.isdigit() and path.name not in whole):
                path.rmtree()
        self._clean = True


def _remove(step_folder: epath.Path) -> None:
    """Empties a step that first ceases to be one: a kill in between leaves no half step under a step's name."""
    if is_remote(step_folder):
        (step_folder / _COMMITTED).unlink()
        step_folder.rmtree()
        step_folder.rmtree(missing_ok=True)  # TensorFlow's file system leaves what comes after a folder's own object
    else:
        step_folder.rename(step_folder.with_name(f"{step_folder.name}{_UNFINISHED}-old")).rmtree()


def find_checkpoint(path: epath.PathLike) -> epath.Path:
    """The step that a path means: itself, RUN/checkpoints/N, or the latest of the run folder that it is."""
    given = absolute(path)
    if (given / "params").exists():
        return given
    folder = given if given.name == "checkpoints" else given / "checkpoints"
    if given.parent.name == "checkpoints" and given.name.isdigit():
        folder, step = given.parent, int(given.name)
        return folder / _STEP_NAMES.build_name(_find_step(folder, step))
    return folder / _STEP_NAMES.build_name(_find_step(folder, None))


def saved_parameters(step_folder: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a step by name, without reading any. Raises UserError where it cannot be read."""
    return jax.tree.map(_shape, named(_saved(step_folder, "params")["params"]))


def load_parameters(step_folder: epath.Path, wanted: Mapping[str, tuple[str, Any]]) -> dict[str, jax.Array]:
    """For every key of `wanted`, (a saved parameter's name, the array or ShapeDtypeStruct that it is to be like).

    Nothing else of the step is read. Names and shapes are those of `saved_parameters`.
    """
    if not wanted:
        return {}
    abstract = nested({name: placed(leaf) for name, leaf in wanted.values()})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = named(ocp.load_checkpointables(step_folder, {"params": abstract})["params"])
    readers = collections.Counter(name for name, _ in wanted.values())
    return {
        # Two parameters read from one source must not share its buffer: the first step donates both.
        target: jax.device_put(loaded[name], placed(leaf).sharding, may_alias=readers[name] == 1)
        for target, (name, leaf) in wanted.items()
    }


def describe(run_dir: epath.PathLike, step: int | None = None) -> str:
    """The text of `inspect checkpoint`: what is in a step (default: the latest) and where it came from."""
    manifest = read_manifest(run_dir)
    checkpoints = Checkpoints(run_dir, best_metric=manifest.get("best_metric"))
    step = checkpoints.existing_step(step)
    info = ocp.checkpointables_metadata(checkpoints._path(step))
    saved_at = datetime.datetime.fromtimestamp(info.commit_timestamp_nsecs / 1e9, datetime.UTC)
    best = checkpoints.best_step()
    steps = [f"{s} (best {manifest['best_metric']})" if s == best else str(s) for s in checkpoints.steps()]
    lines = [
        f"run          {checkpoints._folder.parent}",
        f"task         {manifest.get('mixture_or_task')}; lengths {_pairs(manifest.get('lengths', {}))}",
        f"vocabulary   {_pairs(manifest.get('vocabulary', {}))}",
        f"model        {_pairs(manifest.get('model', {}))}",
        f"written by   {_pairs(manifest.get('versions', {}))}; git {manifest.get('git')}",
        f"steps        {', '.join(steps)}",
        f"step {step:<7} saved {saved_at:%Y-%m-%d %H:%M:%S} UTC",
        f"metrics      {_pairs(info.custom_metadata['metrics']) or 'none'}",
        f"data         {_pairs(info.custom_metadata['data_state'])}",
        "",
    ]
    params = named(info.metadata["params"])
    width = max(map(len, params))
    for name, leaf in params.items():
        shape = " ".join(map(str, leaf.shape)) or "scalar"
        lines.append(f"{name:{width}}  {shape:>12}  {leaf.dtype}  {_size([leaf])}")
    count = sum(math.prod(leaf.shape) for leaf in params.values())
    lines.append(f"params       {len(params)} arrays, {count:,} parameters, {_size(params.values())}")
    for part, tree in (info.metadata.get("training") or {}).items():
        leaves = jax.tree.leaves(tree)
        lines.append(f"{part:12} {len(leaves)} arrays, {_size(leaves)}")
    return "\n".join(lines)


class PreemptionGuard:
    """Turns the first SIGTERM into a flag that the training loop reads; the second ends the process at once.

    Python runs a handler in the main thread only, between two of its instructions, and that thread may sit in a
    compilation or a save for minutes; so a thread of ours reads signals from Python's wake-up pipe. The handler
    counts too, because an event loop (Orbax runs some) takes the pipe for itself while it runs. Enter the guard
    in the main thread.
    """

    def __init__(self):
        self._read = self._handled = 0

    @property
    def requested(self) -> bool:
        return max(self._read, self._handled) > 0

    def __enter__(self) -> "PreemptionGuard":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer)
        self._handler_before = signal.signal(signal.SIGTERM, self._handle)
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._handler_before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _watch(self) -> None:
        while received := os.read(self._reader, 64):
            self._read += received.count(signal.SIGTERM)
            self._exit_on_second()

    def _handle(self, *_) -> None:
        self._handled += 1
        self._exit_on_second()

    def _exit_on_second(self) -> None:
        # Most signals are counted by both ways, so the larger count is the number of signals.
        if max(self._read, self._handled) > 1:
            os._exit(128 + signal.SIGTERM)


def _parts(state: PyTree) -> dict[str, PyTree]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    parts = {"params": fields.pop("params"), "training": fields}
    return {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}  # Orbax writes no empty tree


def _load(path: epath.Path, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    """Reads the parts asked for, having compared every name and shape with what the step holds."""
    trees = _saved(path, *abstract)
    for part, tree in abstract.items():
        saved, wanted = named(trees[part]), named(tree)
        what = "parameter" if part == "params" else "training state"
        for name in [*wanted, *saved]:
            if name not in saved or name not in wanted:
                side, other = ("this run", saved) if name in wanted else ("the checkpoint", wanted)
                raise UserError(
                    f"{path}: only {side} has {what} {name!r}{nearest(name, other)}; go back to the "
                    "model and optimizer it was saved with, or start from its weights (INITIAL_CHECKPOINT_PATH)"
                )
            check_shape(path, name, saved[name], wanted[name])
    return ocp.load_checkpointables(path, jax.tree.map(placed, abstract))


def _saved(path: epath.Path, *parts: str) -> dict[str, PyTree]:
    """What a step holds, as trees whose leaves have shape and dtype. Raises UserError where it cannot be read."""
    found = ocp.checkpointables_metadata(path).metadata
    for part in parts:
        if found.get(part) is None:
            raise UserError(f"{path}: no readable {part!r} in it; it is damaged, or no checkpoint of t5x_lite")
    return {part: found[part] for part in parts}


def check_shape(where: epath.PathLike, name: str, saved: Any, wanted: Any) -> None:
    """Raises UserError with both shapes where they differ."""
    if tuple(saved.shape) != tuple(wanted.shape):
        there, here = tuple(saved.shape), tuple(wanted.shape)
        raise UserError(f"{where}: {name!r} has shape {there} in the checkpoint and {here} in this run")


def _steps(folder: epath.Path) -> list[int]:
    return sorted(found.step for found in _STEP_NAMES.find_all(folder)) if folder.exists() else []


def _find_step(folder: epath.Path, step: int | None) -> int:
    steps = _steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {str(folder)!r}{nearest_folder(folder.parent)}")
    if step is not None and step not in steps:
        raise UserError(f"no step {step} in {str(folder)!r}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """A leaf for Orbax to read: to one device where no sharding is asked for, whatever mesh it came from."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _size(leaves: Any) -> str:
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    power = min(3, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.3g} {('B', 'KB', 'MB', 'GB')[power]}"
