"""One version of all that answers: weights, vocabulary, items. It is loaded, compiled and checked before it serves."""

import dataclasses
import functools
import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from babel import Locale

from t5x_lite.decoding.engine import Engine, chosen_step
from t5x_lite.errors import UserError
from t5x_lite.recommendation import knowledge as known
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.recommender import Recommender, Request, width_of
from t5x_lite.run_folder import MANIFEST, read_manifest
from t5x_lite.serving import settings as limits
from t5x_lite.serving.settings import Settings

log = logging.getLogger(__name__)

_MOST_VALUES = 50  # of an attribute, that a page lists
_CLOSE = 1e-2  # of two log-probabilities of the same text, in bfloat16 too
_SHORTEST_BUCKET = 64  # tokens; shorter prompts are padded to it, so that half as many programs compile
_CANARY = "What is this?"


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """A run that is ready to answer. Nothing of it changes: another version is another value."""

    engine: Engine
    recommender: Recommender | None
    answers: bool
    translates: bool
    model_version: str
    catalogue_version: str = ""

    @classmethod
    def prepare(cls, settings: Settings, like: "Served | None" = None) -> "Served":
        """Loads what the settings name, compiles all that requests need, and checks it.

        With `like`, the version that is served now, programs of the same shapes are shared, and a run that does less
        is refused. Raises UserError for a folder that is damaged, or that answers wrongly.
        """
        began = time.perf_counter()
        served = cls._load(settings, like)
        if like and served.capabilities != like.capabilities:
            raise UserError(f"{settings.model_dir!r} can {served.abilities}; what is served now can {like.abilities}")
        served.warm_up(settings)
        served.check()
        log.info("%s is ready after %.1f s", served.model_version, time.perf_counter() - began)
        return served

    @classmethod
    def _load(cls, settings: Settings, like: "Served | None") -> "Served":
        # A link may be turned to another run meanwhile: all files are to come from one folder.
        folder = os.path.realpath(settings.model_dir) if os.path.isdir(settings.model_dir) else settings.model_dir
        step = chosen_step(folder)
        engine = Engine.load(folder, step)
        version = f"{'weights' if step is None else step}-{_fingerprint(engine.generator.params)}"
        generator = engine.generator
        generator.max_batch = generator.max_scored = settings.max_batch
        generator.shortest_bucket = _SHORTEST_BUCKET
        if like:
            shared = engine.generator.sharing(like.engine.generator)
            engine = dataclasses.replace(engine, generator=shared)
        recommender, catalogue_version = None, ""
        if (Path(folder) / known.FOLDER).is_dir():
            recommender = Recommender(engine, Knowledge.load_run(folder), like=like.recommender if like else None)
        manifest = read_manifest(folder) if (Path(folder) / MANIFEST).exists() else {}
        _check_manifest(folder, manifest, engine, recommender)
        if recommender and settings.catalogue:
            recommender = recommender.with_catalogue(Catalogue.read(settings.catalogue))
        if recommender:
            engine, catalogue_version = recommender.engine, _version_of_items(recommender)
        tasks = manifest.get("tasks", [])
        others = [task for task in tasks if not task.startswith("recommend_")]
        answers = recommender is None or bool(others)
        translates = answers and (not tasks or any(task.startswith(("translate_", "wmt_")) for task in tasks))
        return cls(engine, recommender, answers, translates, version, catalogue_version)

    @property
    def capabilities(self) -> dict[str, bool]:
        return {"recommend": self.recommender is not None, "answer": self.answers, "translate": self.translates}

    @property
    def abilities(self) -> str:
        return ", ".join(name for name, can in self.capabilities.items() if can)

    @property
    def compile_count(self) -> int:
        return self.engine.generator.compile_count

    @functools.cached_property
    def languages(self) -> list[dict[str, str]]:
        """Those that a translation may be asked into: CLDR's modern ones, by their English names."""
        if not self.translates:
            return []
        names = Locale("en").languages
        codes = sorted({name for name in names if len(name) == 2}, key=lambda code: names[code])
        return [{"code": code, "name": names[code]} for code in codes]

    @functools.cached_property
    def described_items(self) -> dict[str, Any]:
        """Of the catalogue: how many items, and their attributes with their values, where those are few."""
        if self.recommender is None:
            return {"items": 0, "attributes": {}, "templates": {}}
        catalogue, prompts = self.recommender.knowledge.catalogue, self.recommender.knowledge.prompts
        values = {name: {value for row in column for value in row} for name, column in catalogue.attributes.items()}
        return {
            "items": len(self.recommender.offered),
            "attributes": {name: sorted(of) if len(of) <= _MOST_VALUES else [] for name, of in values.items()},
            "templates": {name: len(wordings) for name, wordings in prompts.items()},
        }

    @property
    def decodings(self) -> dict[str, Any]:
        """`Decoding` of each mode. More would be more programs, and a program that comes with a request is too late."""
        return {
            "greedy": self.engine.decoding(),
            "beams": self.engine.decoding(beams=limits.BEAMS, n_best=limits.MOST_BEST),
        }

    # ------------------------------------------------------------------ before it serves

    def warm_up(self, settings: Settings) -> None:
        """Compiles, and computes, all that any request may need, within the settings' batches and lists."""
        longest = self.engine.lengths["inputs"]
        if self.recommender:
            widths = {width_of(k) for k in range(1, settings.max_k + 1)}
            self.recommender.warm_up(widths=widths, most_requests=settings.max_batch)
            self.recommender.titles.search("a")  # what it looks up in is made once, and of a large catalogue not soon
        _ = self.described_items, self.languages
        if self.answers:
            generator = self.engine.generator
            for decoding in self.decodings.values():
                generator.warm_up(decoding, lengths=[longest], rows=[settings.max_batch])
            generator.warm_up_scores(lengths=[longest], rows=[settings.max_batch], width=self.engine.lengths["targets"])
            self.engine.warm_up_streams(longest_prompt=longest)

    def check(self) -> None:
        """Asks what can be asked of any model, and recomputes the answer another way.

        UserError where lists have not the items that they must have, or scores are not what teacher forcing gives.
        """
        if self.recommender:
            self._check_recommendations(self.recommender)
        if self.answers:
            answer = self.engine.generate([_CANARY])[0]
            # A text may be cut into other tokens than it was written in: its score is finite, or all is wrong.
            if not math.isfinite(answer.score):
                raise UserError(
                    f"{self.model_version}: a canary prompt got the score {answer.score}; the old one stays"
                )

    def _check_recommendations(self, recommender: Recommender) -> None:
        histories = sorted(recommender.knowledge.histories, key=len)[-1:] or [()]
        history = [int(item) for item in histories[0]] or [int(recommender.offered[0])]
        asked = Request(history=history, k=1)
        found = recommender.answer([asked])[0].items
        seen = {recommender.knowledge.catalogue.ids[item] for item in history}
        left = len(set(recommender.offered.tolist()) - set(history))
        if len(found) != min(1, left) or any(each.item in seen for each in found):
            raise UserError(f"{self.model_version}: a canary request got {len(found)} items of {left} that it may get")
        for each in found:
            expected = recommender.log_probability(asked, recommender.knowledge.catalogue.number_of[each.item])
            if not abs(each.score - expected) <= _CLOSE * max(1.0, abs(expected)):  # no number is not close either
                raise UserError(
                    f"{self.model_version}: a canary request got the score {each.score:.4f}, teacher forcing gives "
                    f"{expected:.4f}; the weights are damaged"
                )


def signature(settings: Settings) -> tuple:
    """What changes when another version is there to be loaded: cheap, and read while one is being written."""
    folder = Path(os.path.realpath(settings.model_dir))
    files = [folder / MANIFEST, *sorted((folder / known.FOLDER).glob("*"))]
    files += [Path(settings.catalogue)] if settings.catalogue else []
    times = [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]
    return (str(folder), chosen_step(str(folder)), *times)


def _check_manifest(folder: str, manifest: Mapping, engine: Engine, recommender: Recommender | None) -> None:
    found = {"vocabulary": (engine.vocabulary.sha256, manifest.get("vocabulary", {}).get("sha256"))}
    if recommender:
        found["items"] = (recommender.knowledge.sha256, manifest.get("items_sha256"))
    for what, (is_, wanted) in found.items():
        if manifest and is_ != wanted:
            raise UserError(
                f"{folder!r}: {what} has sha256 {is_[:12]}, and {str(wanted)[:12]} by {MANIFEST}; restore the folder "
                "from a copy of the run"
            )


def _version_of_items(recommender: Recommender) -> str:
    digest = hashlib.sha256(recommender.knowledge.sha256.encode() + recommender.offered.tobytes())
    return digest.hexdigest()[:12]


def _fingerprint(params: Any) -> str:
    digest = hashlib.blake2b(digest_size=4)
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
