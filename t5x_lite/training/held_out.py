"""Evaluation where nothing but a packed cache is there: loss and accuracy of held-out rows, the targets given."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array

from t5x_lite.data.packed_cache import held_out_batches
from t5x_lite.model import bind
from t5x_lite.training.losses import Losses, cross_entropy
from t5x_lite.training.run import Run
from t5x_lite.training.state import Params


class HeldOut:
    """The rows of EVAL_SPLIT in a run's cache, about EVAL_EXAMPLES of each task; `notice` says what is measured."""

    def __init__(self, run: Run):
        config, cache = run.config, run.data.cache
        self._run = run
        self._loss: Callable[[Params, Mapping[str, Array]], Losses] | None = None
        parts = [part for part in cache.parts if config.eval_split in part.splits]
        self._has_rows = bool(parts)
        names = [f"{config.eval_split}/{name}" for name in ("loss", "accuracy")] if parts else []
        self.best_metric = config.best_metric if config.best_metric in names[1:] else None
        measured = f"{' and '.join(names)} of cached rows of {len(parts)} tasks" if parts else "nothing"
        lost = "" if config.best_metric == self.best_metric else f"; BEST_METRIC {config.best_metric!r} is not measured"
        self.notice = f"evaluation: the tasks' metrics need seqio, which is not installed; {measured} measured{lost}"

    def scores(self, params: Params) -> dict[str, float]:
        """Per target token, over all the rows and processes; {} where the cache has no such split."""
        if not self._has_rows:
            return {}
        config = self._run.config
        model = self._run.model

        def losses(params: Params, batch: Mapping[str, Array]) -> Losses:
            logits = bind(model, params)(batch, dropout_key=None)
            return cross_entropy(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"], z_loss=0.0)

        if self._loss is None:
            self._loss = jax.jit(losses, out_shardings=config.partitioner.replicated)
        rows = config.batch_size // config.microbatches
        own_rows = config.partitioner.own_rows(rows)
        batches = held_out_batches(self._run.data.cache, config.eval_split, config.eval_examples, rows, own_rows)
        with config.partitioner.context():
            found = [jax.device_get(self._loss(params, config.partitioner.global_batch(batch))) for batch in batches]
        total = Losses(*np.sum(np.array(found, np.float64), axis=0))
        return {
            f"{config.eval_split}/loss": float(total.cross_entropy / total.weight),
            f"{config.eval_split}/accuracy": float(total.correct / total.weight),
        }
