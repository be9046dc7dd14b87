"""A served model of random weights over the films of tests/recommendation, and run folders that hold it."""

import contextlib
import dataclasses
import functools
import math

import jax
from starlette.testclient import TestClient

from t5x_lite.checkpoints import Checkpoints
from t5x_lite.recommendation.recommender import Recommender
from t5x_lite.run_folder import describe_model, write_manifest
from t5x_lite.serving.app import create_app
from t5x_lite.serving.served import Served
from t5x_lite.serving.settings import Settings
from tests.recommendation import films

SETTINGS = {"model_dir": "runs/films", "max_batch": 2, "max_k": 10}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    params: dict


@functools.cache
def served() -> Served:
    """One that recommends, answers and translates, with all its programs compiled."""
    engine = films.new_engine(max_batch=2, max_scored=2)
    recommender = Recommender(engine, films.knowledge())
    found = Served(recommender.engine, recommender, True, True, "7-random", "films")
    found.warm_up(Settings(**SETTINGS))
    return found


@contextlib.contextmanager
def client(served=served, **settings):
    """A client of an application that serves this."""
    app = create_app(Settings(**(SETTINGS | settings)), served=served and served())
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def save_run(folder, seed=0, *, knowledge=None, weights=lambda params: params, **changed):
    """Writes a run folder of the films; `weights` alters parameters, `changed` fields of the manifest."""
    engine, knowledge = films.new_engine(seed=seed), knowledge or films.knowledge()
    checkpoints = Checkpoints(folder, keep_last=1)
    checkpoints.save(7, Weights(weights(engine.generator.params)), {}, {})
    checkpoints.close()
    engine.vocabulary.save(folder / "vocabulary")
    knowledge.save(folder / "items")
    manifest = describe_model(films.config("token"), engine.vocabulary, engine.lengths)
    manifest |= {"tasks": ["recommend_next"], "items_sha256": knowledge.sha256}
    write_manifest(folder, manifest | changed)
    return folder


def damaged(params):
    """Weights that are no numbers."""
    return jax.tree.map(lambda leaf: leaf * math.nan, params)
