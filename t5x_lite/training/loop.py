"""The training run, in the order in which it happens."""

import io
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from t5x_lite import config as gin_config
from t5x_lite import devices, partitioning, processes
from t5x_lite.checkpoints import Checkpoints, PreemptionGuard
from t5x_lite.data import vocabularies
from t5x_lite.data.packed_cache import CacheIterator
from t5x_lite.data.pipeline import EvalSet, Prefetched, TrainIterator, prefetch
from t5x_lite.data.token_store import TokenStore, materialize
from t5x_lite.decoding.generator import Generator
from t5x_lite.run_folder import MANIFEST, write_manifest
from t5x_lite.training import evaluation
from t5x_lite.training.from_cache import has_metrics
from t5x_lite.training.goodput import Goodput, describe
from t5x_lite.training.held_out import HeldOut
from t5x_lite.training.metrics_log import MetricsLog
from t5x_lite.training.profile import Profiler
from t5x_lite.training.progress import SPEEDS, TrainingProgress
from t5x_lite.training.report import write_report
from t5x_lite.training.run import Run, TrainConfig, describe_plan, prepare
from t5x_lite.training.start import initial_state
from t5x_lite.training.state import Params, TrainState, abstract_frozen, abstract_state
from t5x_lite.training.step import make_train_step
from t5x_lite.training.trainable import join
from t5x_lite.training.watchdog import Watchdog
from t5x_lite.training.work import work_of

_PREFETCHED_BATCHES = 4
_ONE_FOLDER = "give all of them the same MODEL_DIR, on a disk that all of them see"
_TEXTS_LOOKED_AT = 10_000  # for the share of lost characters; a large set is not read whole for it


class NonFiniteLoss(Exception):
    """The loss stopped being a number; says at which step, and where its batch was written."""


def train(config: TrainConfig, *, dry_run: bool = False, profile: range | None = None) -> bool:
    """Trains to `train_steps`, going on with the run of `model_dir` where there is one; traces the steps of `profile`.

    Returns whether that is all: False after a SIGTERM. Raises UserError for what the user can mend, and NonFiniteLoss.
    """
    started = time.time()
    partitioning.initialize_distributed()
    # ---------------------------------------------------------------- plan
    run = prepare(config)
    abstract = abstract_state(run.model, config.optimizer, config.partitioner, run.trainable)
    main_process = processes.is_main()
    if main_process:
        frozen = abstract_frozen(run.model, config.partitioner, run.trainable)
        print(describe_plan(run, abstract, frozen), flush=True)
    if dry_run:
        return True

    # ---------------------------------------------------------------- run folder
    processes.agree(f"{config.model_dir} holds {'a' if run.resuming else 'no'} run", _ONE_FOLDER)
    if main_process and not run.resuming:
        write_run_folder(run)
    processes.agree("the run folder is written", _ONE_FOLDER)
    there = (epath.Path(config.model_dir) / MANIFEST).exists()
    processes.agree(f"{config.model_dir} has {'a' if there else 'no'} {MANIFEST}", _ONE_FOLDER)
    # Without the tasks' metrics the held-out rows of the cache are evaluated, and there is no best step by a metric.
    held_out = None if has_metrics(run.tasks) else HeldOut(run)
    best_metric = config.best_metric if held_out is None else held_out.best_metric
    checkpoints = Checkpoints(config.model_dir, keep_last=config.keep_checkpoints, best_metric=best_metric)

    # ---------------------------------------------------------------- data
    stores = [] if run.data.cache else [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    own_rows = config.partitioner.own_rows(config.batch_size)
    iterator = make_iterator(run, stores, own_rows)
    eval_sets = [] if held_out else evaluation.load_eval_sets(run, config.eval_split, config.eval_examples)

    if main_process and held_out:
        print(held_out.notice, flush=True)
    if main_process and not run.data.cache:  # it warned when it was written
        warn_of_lost_characters(run.tasks, run.vocabulary)

    # ---------------------------------------------------------------- state
    state, frozen, decision = initial_state(run, abstract, checkpoints, iterator)
    if main_process:
        print(decision, flush=True)

    # ---------------------------------------------------------------- steps
    step = int(state.step)
    processes.agree(f"the run goes on from step {step}", _ONE_FOLDER)
    log = MetricsLog(config.model_dir, resume_step=step) if main_process else None
    # Of a model that is trained in part, the backward pass is not twice the forward pass.
    peak = devices.peak(config.partitioner.mesh.devices.flat) if run.trains_all else None
    if main_process and peak:
        print(f"peak: {peak}; MFU is a share of it", flush=True)
    progress = TrainingProgress(
        config.train_steps,
        step,
        own_share=len(own_rows) / config.batch_size,
        peak_flops=peak.flops if peak else None,
        quiet=not main_process,
    )
    train_step = train_step_of(run)
    clock = Goodput(config.model_dir, step, began=started)
    watchdog = Watchdog(config.model_dir, config.step_timeout)
    profiler = Profiler(config.model_dir, profile if main_process else None, progress.say)
    loop = Loop(run, frozen, stores, checkpoints, held_out or eval_sets, log, progress, clock, watchdog, profiler)
    try:
        with (
            PreemptionGuard() as guard,
            config.partitioner.context(),
            prefetch(iterator, _PREFETCHED_BATCHES) as batches,
            watchdog,
            profiler.closing(),
        ):
            finished = loop.go(state, train_step, batches, guard)
    except (jax.errors.JaxRuntimeError, TimeoutError) as error:
        if processes.is_loss(error):
            checkpoints.give_up()
        raise
    finally:
        checkpoints.close()
        progress.close()
        if log:
            log.close()
    if main_process:
        write_report(config.model_dir)
        print(f"report: {os.path.join(config.model_dir, 'report.html')}")
    return finished


def warn_of_lost_characters(tasks: Sequence, vocabulary: vocabularies.Vocabulary) -> None:
    """A task whose text the vocabulary cannot express trains on <unk>: say so before hours are spent."""
    from t5x_lite.data import registry

    for task in tasks:
        coverage = vocabulary.coverage(itertools.islice(registry.texts(task, "train"), _TEXTS_LOOKED_AT))
        if coverage.share > vocabularies.LOST_SHARE_WARNED:
            print(
                f"WARNING {task.name}: {coverage.share:.1%} of its characters are not in the vocabulary and reach the "
                f"model as <unk>: {' '.join(coverage.examples)}",
                flush=True,
            )


def write_run_folder(run: Run) -> None:
    """Everything but the weights; the manifest last, since it is what makes the folder a run."""
    model_dir = run.config.model_dir
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():  # by one that was killed here
        left.rmtree() if left.is_dir() else left.unlink()
    run.vocabulary.save(os.path.join(model_dir, "vocabulary"))
    if run.data.knowledge:
        run.knowledge.save(os.path.join(model_dir, "items"))
    gin_config.write_config(model_dir)
    write_manifest(model_dir, run.manifest())


def make_iterator(
    run: Run, stores: list[TokenStore], own_rows: Sequence[int] | None = None
) -> TrainIterator | CacheIterator:
    config = run.config
    if run.data.cache:
        return CacheIterator(run.data.cache, batch_size=config.batch_size, seed=config.seed, own_rows=own_rows)
    return TrainIterator(
        stores,
        run.rates,
        lengths=run.lengths,
        batch_size=config.batch_size,
        seed=config.seed,
        pack=config.pack,
        own_rows=own_rows,
    )


def train_step_of(run: Run) -> Callable:
    config = run.config
    return make_train_step(
        run.model,
        config.optimizer,
        config.partitioner,
        learning_rate=config.learning_rate,
        microbatches=config.microbatches,
        z_loss=config.z_loss,
        label_smoothing=config.label_smoothing,
        trainable=run.trainable,
    )


class Loop:
    """The steps of a run, and what happens between them."""

    def __init__(
        self,
        run: Run,
        frozen: Params,
        stores: list[TokenStore],
        checkpoints: Checkpoints,
        eval_sets: list[EvalSet] | HeldOut,
        log: MetricsLog | None,
        progress: TrainingProgress,
        clock: Goodput,
        watchdog: Watchdog,
        profiler: Profiler,
    ):
        self.run = run
        self.config = run.config
        self.frozen = frozen
        self.stores = stores
        self.checkpoints = checkpoints
        self.eval_sets = eval_sets
        self.log = log
        self.progress = progress
        self.clock = clock
        self.watchdog = watchdog
        self.profiler = profiler
        self.of_saves: dict[str, float] = {}  # what saving took, for the next line of the log
        self.generator: Generator | None = None
        # Steps whose loss has not been looked at: (step, the data's state before it, its loss on the device).
        self.unchecked: list[tuple[int, dict[str, int], jax.Array]] = []

    def go(self, state: TrainState, train_step: Callable, batches: Prefetched, guard: PreemptionGuard) -> bool:
        """Steps until the last one, or a SIGTERM before it (False); the state it stops with is saved."""
        config = self.config
        start = step = int(state.step)
        vote, stopping = processes.Vote(), False
        # The vote is a program of the devices: all processes take part in it, or none.
        while step < config.train_steps and not (stopping := vote(guard.requested)):
            self.watchdog.alive(f"step {step + 1}")
            before = batches.state()
            with self.clock.spending("data_wait"):
                host_batch = next(batches)
            batch = config.partitioner.global_batch(host_batch)
            self.profiler.before(step, train_step, (state, batch, self.frozen))
            state, metrics = train_step(state, batch, self.frozen)
            step += 1
            self.profiler.after(step, state)
            self.unchecked.append((step, before, metrics["loss"]))
            self.progress.step(step, work_of(host_batch, self.run.model))
            if step == start + 1:
                self.first_step_done(metrics)
            last = step == config.train_steps
            if step % config.log_period == 0 or last:
                self.write_metrics(step, metrics)
            # Scores come before the save of their step, and nothing is saved that is not finite.
            scores = self.evaluate(step, state) if step % config.eval_period == 0 or last else None
            if scores is not None or step % config.checkpoint_period == 0:
                self.save(step, state, batches.state(), scores)
        self.profiler.finish(step, state)
        if step > start:
            self.save(step, state, batches.state(), None)
            with self.clock.spending("checkpoint"):
                self.checkpoints.wait()
            spent = self.clock.record(step)
            self.clock.keep()
            if self.log:
                self.progress.say(describe(spent))
        if stopping:
            self.progress.say(f"SIGTERM: saved step {step}; the same command goes on from there")
        elif step == start:
            self.progress.say(f"nothing to do: step {step} of {config.train_steps} is already there")
        return step >= config.train_steps

    def first_step_done(self, metrics: dict[str, jax.Array]) -> None:
        """Says how long the user waited; compilation would otherwise count as training."""
        jax.block_until_ready(metrics)
        self.clock.started()
        self.progress.say(f"first step done {self.clock.seconds_of('startup'):.1f} s after the start")
        self.progress.restart()

    def write_metrics(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Hands the step's metrics to the log, which reads them when the next ones come."""
        checked = self.check_finite(until=step - self.config.log_period)
        rates = self.progress.rates() | self.of_saves | self.clock.record(step) | devices.memory()
        self.of_saves = {}
        if checked is None:  # the first steps have been sent to the devices, which says nothing of their speed
            rates = {name: value for name, value in rates.items() if name not in SPEEDS}
        if checked is not None:
            self.progress.show(step, checked, rates)
        if self.log:
            self.log.write(step, metrics, rates)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        self.check_finite(until=step)
        self.watchdog.alive(f"the evaluation at step {step}")
        self.progress.pause()
        with self.clock.spending("evaluation"):
            params = join(state.params, self.frozen)
            held_out = isinstance(self.eval_sets, HeldOut)
            results = {} if held_out else self.answers(step, params)
            scores = self.eval_sets.scores(params) if held_out else evaluation.flat(results)
        if self.log:
            if results:
                evaluation.write_results(self.config.model_dir, results)
            self.log.write_eval(step, scores)
            summary = "  ".join(f"{name} {value:.3f}" for name, value in results.get("overall", scores).items())
            self.progress.say(f"eval at step {step}: {summary}")
        self.progress.resume()
        return scores

    def answers(self, step: int, params: Params) -> dict[str, Any]:
        if self.generator is None:
            self.generator = Generator(
                self.run.model,
                params,
                eos_id=self.run.vocabulary.eos_id,
                partitioner=self.config.partitioner,
            )
        self.generator.params = params
        results = evaluation.evaluate(self.run, self.generator, self.eval_sets, step=step, split=self.config.eval_split)
        # The next step donates these arrays.
        self.generator.params = {}
        return results

    def save(self, step: int, state: TrainState, data_state: dict[str, int], scores: dict[str, float] | None) -> None:
        self.check_finite(until=step)
        self.watchdog.alive(f"the save of step {step}")
        began, whole = time.monotonic(), self.checkpoints.background_seconds
        with self.clock.spending("checkpoint"):
            if self.log:
                self.log.keep()
            self.clock.keep()
            self.checkpoints.save(step, state, data_state, scores)
        blocked = self.of_saves.get("checkpoint/blocked_seconds", 0.0) + time.monotonic() - began
        self.of_saves["checkpoint/blocked_seconds"] = blocked
        if self.checkpoints.background_seconds != whole:  # of the save before this one
            self.of_saves["checkpoint/background_seconds"] = self.checkpoints.background_seconds
        self.clock.record(step)

    def check_finite(self, until: int) -> float | None:
        """The loss of the last unchecked step up to `until`; NonFiniteLoss where one of them is no number."""
        loss = None
        while self.unchecked and self.unchecked[0][0] <= until:
            step, before, on_device = self.unchecked.pop(0)
            loss = float(on_device)
            if not math.isfinite(loss):
                raise NonFiniteLoss(self.keep_batch(step, before, loss))
        return loss

    def keep_batch(self, step: int, before: dict[str, int], loss: float) -> str:
        """Makes the step's whole batch again and writes it to the run folder; returns what to tell the user."""
        path = os.path.join(self.config.model_dir, f"nonfinite_batch_{step}.npz")
        if self.log:
            iterator = make_iterator(self.run, self.stores)
            iterator.restore(before)
            arrays = io.BytesIO()
            np.savez(arrays, **next(iterator))
            epath.Path(path).write_bytes(arrays.getvalue())
        kept = self.checkpoints.latest_step()
        return (
            f"the loss is {loss} at step {step}; its batch is in {path}; the last checkpoint "
            f"({'none' if kept is None else f'step {kept}'}) is from before: lower the learning rate or clip gradients"
        )
