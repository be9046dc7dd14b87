"""The training run, in the order in which it happens."""

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite import config as gin_config
from t5x_lite import partitioning
from t5x_lite.checkpoints import Checkpoints, PreemptionGuard
from t5x_lite.data import vocabularies
from t5x_lite.data.packed_cache import CacheIterator
from t5x_lite.data.pipeline import EvalSet, Prefetched, TrainIterator, prefetch
from t5x_lite.data.token_store import TokenStore, materialize
from t5x_lite.decoding.generator import Generator
from t5x_lite.run_folder import write_manifest
from t5x_lite.training import evaluation
from t5x_lite.training.from_cache import has_metrics
from t5x_lite.training.held_out import HeldOut
from t5x_lite.training.metrics_log import MetricsLog
from t5x_lite.training.progress import TrainingProgress
from t5x_lite.training.report import write_report
from t5x_lite.training.run import Run, TrainConfig, describe_plan, prepare
from t5x_lite.training.start import initial_state
from t5x_lite.training.state import Params, TrainState, abstract_frozen, abstract_state
from t5x_lite.training.step import make_train_step
from t5x_lite.training.trainable import join

_PREFETCHED_BATCHES = 4
_TEXTS_LOOKED_AT = 10_000  # for the share of lost characters; a large set is not read whole for it


class NonFiniteLoss(Exception):
    """The loss stopped being a number; says at which step, and where its batch was written."""


def train(config: TrainConfig, *, dry_run: bool = False) -> None:
    """Trains to `train_steps`, going on with the run of `model_dir` where there is one.

    Raises UserError for what the user can mend, and NonFiniteLoss.
    """
    started = time.monotonic()
    partitioning.initialize_distributed()
    # ---------------------------------------------------------------- plan
    run = prepare(config)
    abstract = abstract_state(run.model, config.optimizer, config.partitioner, run.trainable)
    main_process = jax.process_index() == 0
    if main_process:
        frozen = abstract_frozen(run.model, config.partitioner, run.trainable)
        print(describe_plan(run, abstract, frozen), flush=True)
    if dry_run:
        return

    # ---------------------------------------------------------------- run folder
    if main_process and not run.resuming:
        write_run_folder(run)
    # Without the tasks' metrics the held-out rows of the cache are evaluated, and there is no best step by a metric.
    held_out = None if has_metrics(run.tasks) else HeldOut(run)
    best_metric = config.best_metric if held_out is None else held_out.best_metric
    checkpoints = Checkpoints(config.model_dir, keep_last=config.keep_checkpoints, best_metric=best_metric)

    # ---------------------------------------------------------------- data
    stores = [] if run.data.cache else [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    iterator = make_iterator(run, stores)
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
    log = MetricsLog(config.model_dir, resume_step=step) if main_process else None
    progress = TrainingProgress(config.train_steps, step, quiet=not main_process)
    train_step = train_step_of(run)
    loop = Loop(run, frozen, stores, checkpoints, held_out or eval_sets, log, progress, started)
    try:
        with (
            PreemptionGuard() as guard,
            config.partitioner.context(),
            prefetch(iterator, _PREFETCHED_BATCHES) as batches,
        ):
            loop.go(state, train_step, batches, guard)
    finally:
        checkpoints.close()
        progress.close()
        if log:
            log.close()
    if main_process:
        write_report(config.model_dir)
        print(f"report: {os.path.join(config.model_dir, 'report.html')}")


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
    os.makedirs(model_dir, exist_ok=True)
    run.vocabulary.save(os.path.join(model_dir, "vocabulary"))
    if run.data.knowledge:
        run.knowledge.save(os.path.join(model_dir, "items"))
    gin_config.write_config(model_dir)
    write_manifest(model_dir, run.manifest())


def make_iterator(run: Run, stores: list[TokenStore]) -> TrainIterator | CacheIterator:
    config = run.config
    process = (jax.process_index(), jax.process_count())
    if run.data.cache:
        return CacheIterator(run.data.cache, batch_size=config.batch_size, seed=config.seed, process=process)
    return TrainIterator(
        stores,
        run.rates,
        lengths=run.lengths,
        batch_size=config.batch_size,
        seed=config.seed,
        pack=config.pack,
        process=process,
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
        started: float,
    ):
        self.run = run
        self.config = run.config
        self.frozen = frozen
        self.stores = stores
        self.checkpoints = checkpoints
        self.eval_sets = eval_sets
        self.log = log
        self.progress = progress
        self.started = started
        self.generator: Generator | None = None
        # Steps whose loss has not been looked at: (step, the data's state before it, its loss on the device).
        self.unchecked: list[tuple[int, dict[str, int], jax.Array]] = []

    def go(self, state: TrainState, train_step: Callable, batches: Prefetched, guard: PreemptionGuard) -> None:
        """Steps until the last one or a SIGTERM; the state it stops with is saved."""
        config = self.config
        start = step = int(state.step)
        while step < config.train_steps and not guard.requested:
            before = batches.state()
            host_batch = next(batches)
            state, metrics = train_step(state, config.partitioner.global_batch(host_batch), self.frozen)
            step += 1
            self.unchecked.append((step, before, metrics["loss"]))
            self.progress.step(step, host_batch)
            if step == start + 1:
                self.first_step_done(metrics)
            last = step == config.train_steps
            if step % config.log_period == 0 or last:
                self.write_metrics(step, metrics)
            # Scores come before the save of their step, and nothing is saved that is not finite.
            scores = self.evaluate(step, state) if step % config.eval_period == 0 or last else None
            if scores is not None or step % config.checkpoint_period == 0:
                self.save(step, state, batches.state(), scores)
        if step > start:
            self.save(step, state, batches.state(), None)
        if guard.requested:
            self.progress.say(f"SIGTERM: saved step {step}; the same command goes on from there")
        elif step == start:
            self.progress.say(f"nothing to do: step {step} of {config.train_steps} is already there")

    def first_step_done(self, metrics: dict[str, jax.Array]) -> None:
        """Says how long the user waited; compilation would otherwise count as training."""
        jax.block_until_ready(metrics)
        self.progress.say(f"first step done {time.monotonic() - self.started:.1f} s after the start")
        self.progress.restart()

    def write_metrics(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Hands the step's metrics to the log, which reads them when the next ones come."""
        checked = self.check_finite(until=step - self.config.log_period)
        rates = self.progress.rates()
        if checked is not None:
            self.progress.show(step, checked, rates)
        if self.log:
            self.log.write(step, metrics, rates)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        self.check_finite(until=step)
        self.progress.pause()
        params = join(state.params, self.frozen)
        if isinstance(self.eval_sets, HeldOut):
            return self.evaluated(step, self.eval_sets.scores(params), {})
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
        return self.evaluated(step, evaluation.flat(results), results)

    def evaluated(self, step: int, scores: dict[str, float], results: dict[str, Any]) -> dict[str, float]:
        """Writes and shows what an evaluation found; `results` is the whole of it, if there was more than scores."""
        if self.log:
            if results:
                evaluation.write_results(self.config.model_dir, results)
            self.log.write_eval(step, scores)
            summary = "  ".join(f"{name} {value:.3f}" for name, value in results.get("overall", scores).items())
            self.progress.say(f"eval at step {step}: {summary}")
        self.progress.resume()
        return scores

    def save(self, step: int, state: TrainState, data_state: dict[str, int], scores: dict[str, float] | None) -> None:
        self.check_finite(until=step)
        if self.log:
            self.log.flush()
        self.checkpoints.save(step, state, data_state, scores)

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
        """Makes the step's batch again and writes it to the run folder; returns what to tell the user."""
        iterator = make_iterator(self.run, self.stores)
        iterator.restore(before)
        path = os.path.join(self.config.model_dir, f"nonfinite_batch_{step}.npz")
        np.savez(path, **next(iterator))
        kept = self.checkpoints.latest_step()
        return (
            f"the loss is {loss} at step {step}; its batch is in {path}; the last checkpoint "
            f"({'none' if kept is None else f'step {kept}'}) is from before: lower the learning rate or clip gradients"
        )
