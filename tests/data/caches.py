"""Caches to test with: the pipeline's steps over lists, in place of Beam, and configurations to cache."""

import collections
import itertools

import numpy as np

from t5x_lite.data import cache_pipeline
from t5x_lite.training import caching
from t5x_lite.training.optimizers import adamw
from t5x_lite.training.run import TrainConfig

LENGTHS = {"inputs": 40, "targets": 12}


def run_plainly(recipe, beam_flags=()):
    """What `cache_pipeline.run` does, one step after another; groups come in the worst order."""
    blocks = [block for split in sorted(recipe.shards) for block in cache_pipeline.read(recipe, split)]
    dealt = itertools.chain.from_iterable(cache_pipeline.tokenize(recipe, block) for block in reversed(blocks))
    written = [cache_pipeline.write_shard(recipe, group) for group in _grouped(dealt)]
    for group in _grouped(reversed(written)):
        cache_pipeline.finish_part(recipe, group)


def _grouped(pairs):
    groups = collections.defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups.items()


def config_of(mixture, folder, **changes):
    from tests.interop.test_run import BASE, ONE  # these want the eight devices that tests have
    from tests.training.test_step import RATE

    settings = {
        "model_dir": str(folder / "run"),
        "mixture_or_task_name": mixture,
        "task_feature_lengths": LENGTHS,
        "train_steps": 4,
        "batch_size": 8,
        "model": BASE,
        "partitioner": ONE,
        "optimizer": adamw(RATE),
        "learning_rate": RATE,
        "vocabulary": "bytes",
    }
    return TrainConfig(**(settings | changes))


def write_cache(monkeypatch, config, folder):
    monkeypatch.setattr(cache_pipeline, "run", run_plainly)
    caching.write_cache(config, str(folder), [])
    return folder


def examples_of(batch):
    """The (inputs, targets) of every example in a packed batch, as tuples of ids."""
    found = []
    for row in range(len(batch["encoder_input_tokens"])):
        parts = []
        for tokens, segments in (
            ("encoder_input_tokens", "encoder_segment_ids"),
            ("decoder_target_tokens", "decoder_segment_ids"),
        ):
            ids, of = batch[tokens][row], batch[segments][row]
            parts.append([tuple(ids[of == segment].tolist()) for segment in range(1, of.max() + 1)])
        found += zip(*parts, strict=True)
    return found


def same(first, second):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )
