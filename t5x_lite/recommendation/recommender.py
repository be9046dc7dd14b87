"""Recommendations of a trained run: items that exist, are new to the user and pass the filters; scores and reasons."""

import dataclasses
import time
from collections.abc import Collection, Sequence

import numpy as np

from t5x_lite.decoding.buckets import power_of_two, range_of_buckets
from t5x_lite.decoding.engine import Engine
from t5x_lite.decoding.generator import FoundItem
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.trie import Trie, build_trie
from t5x_lite.errors import UserError, nearest
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.newcomers import with_rows_of_new_items
from t5x_lite.recommendation.resolve import Titles

_WIDTHS = (10, 20, 50, 100)  # numbers of beams, so that few programs compile; beyond, powers of two
_FEWEST_DENIED = 1024  # room for a long history, so that the usual ones run in one program
_REASONS = 3  # history entries that are named for an item


@dataclasses.dataclass(frozen=True)
class Request:
    """Who wants what: items taken, oldest first (numbers), and what was said, in words; both may be missing.

    `allowed` are the only items that may come (None: all), `denied` those that must not; what was taken comes again
    only where `exclude_seen` is off.
    """

    history: Sequence[int] = ()
    interests: str = ""
    k: int = 10
    allowed: Collection[int] | None = None
    denied: Collection[int] = ()
    exclude_seen: bool = True
    evidence: bool = False

    def __post_init__(self):
        if self.k < 1:
            raise UserError(f"k is {self.k}; ask for at least 1 item")


@dataclasses.dataclass(frozen=True)
class Reason:
    """An entry of the history, and by how much the item's log-probability falls without it."""

    item: str
    title: str
    effect: float


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One item of a list; `score` is the log-probability of its text, or for a popular item that of its share."""

    rank: int
    item: str
    title: str
    score: float
    evidence: tuple[Reason, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """A list, best first. `source` is 'model', or 'popularity' where nothing is known of who asks."""

    items: tuple[Recommendation, ...]
    source: str
    warnings: tuple[str, ...] = ()


class Recommender:
    """A run's model and what it knows of items and users."""

    def __init__(self, engine: Engine, knowledge: Knowledge):
        self._engine = engine
        self._set(knowledge, removed=(), like=None)

    @classmethod
    def load(cls, model_dir: str, step: int | None = None) -> "Recommender":
        """Opens a run of gin/recommend.gin. UserError where it is none."""
        return cls(Engine.load(model_dir, step), Knowledge.load_run(model_dir))

    def _set(self, knowledge: Knowledge, removed: Collection[int], like: Trie | None) -> None:
        sequences = knowledge.index.sequences(self._engine.vocabulary)
        offered = np.setdiff1d(np.arange(len(sequences)), np.fromiter(removed, np.int64, len(removed)))
        if not len(offered):
            raise UserError("every item is removed; leave one that can be recommended")
        self._trie = build_trie([sequences[item] for item in offered], like=like)
        # Nothing below raises: a catalogue that is refused changes nothing.
        self.knowledge = knowledge
        self.titles = Titles(knowledge.catalogue)
        self._offered = offered
        self._place = np.full(len(sequences), -1)
        self._place[offered] = np.arange(len(offered))
        # Of no prefix, its zeros are read as what stands before the beginning, so one width serves all.
        recent = [0] * knowledge.recent
        self._prefix_width = len(self._engine.vocabulary.encode(knowledge.text(recent))) if recent else 0

    @property
    def compile_count(self) -> int:
        return self._engine.generator.compile_count

    # ------------------------------------------------------------------ asking

    def recommend(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] = (),
        interests: str = "",
        k: int = 10,
        exclude: Sequence[str] = (),
        exclude_seen: bool = True,
        filters: Sequence[str] = (),
        candidates: Sequence[str] | None = None,
        evidence: bool = False,
    ) -> Recommendations:
        """The `k` best items for a known `user`, or after a `history` of titles or ids, or for stated `interests`.

        `filters` are those of `Catalogue.matching`; `exclude` and `candidates` are titles or ids. Raises UserError for
        users, titles and filters that are not known.
        """
        if user is not None and len(history):
            raise UserError("user and history: give the one or the other")
        taken = self.knowledge.histories[self.knowledge.user(user)] if user is not None else self.numbers(history)
        allowed = None if candidates is None else set(self.numbers(candidates))
        if filters:
            matching = set(self.knowledge.catalogue.matching(filters).tolist())
            allowed = matching if allowed is None else allowed & matching
        request = Request(
            history=list(taken),
            interests=interests,
            k=k,
            allowed=allowed,
            denied=self.numbers(exclude),
            exclude_seen=exclude_seen,
            evidence=evidence,
        )
        return self.answer([request])[0]

    def numbers(self, texts: Sequence[str]) -> list[int]:
        """The items of these titles or ids."""
        if isinstance(texts, str):
            raise UserError(f"{texts!r:.60} is one text; give a list of titles")
        return [self.titles.resolve(text) for text in texts]

    def answer(self, requests: Sequence[Request]) -> list[Recommendations]:
        """A list for each request, in their order; those of one width run as batches."""
        asked = {i: self.resolved(request) for i, request in enumerate(requests)}
        known = [i for i, request in asked.items() if len(request.history) or request.interests]
        answers = {i: self._popular(asked[i]) for i in asked.keys() - set(known)}
        for width in sorted({_width(asked[i].k) for i in known}):
            of_width = [i for i in known if _width(asked[i].k) == width]
            found = self._found([asked[i] for i in of_width], width)
            answers |= {i: self._listed(asked[i], items) for i, items in zip(of_width, found, strict=True)}
        return [answers[i] for i in range(len(requests))]

    def resolved(self, request: Request) -> Request:
        """The request with all that must not come among its denied items."""
        denied = set(request.denied) | (set(request.history) if request.exclude_seen else set())
        return dataclasses.replace(request, denied=denied)

    def _found(self, requests: Sequence[Request], width: int) -> list[list[tuple[int, float]]]:
        """(item, log-probability) of the best items of each request."""
        vocabulary = self._engine.vocabulary
        prompts = [self.knowledge.prompt(request.history, request.interests) for request in requests]
        distinct = {id(request.allowed): request.allowed for request in requests}
        places = {key: None if items is None else self._places(items) for key, items in distinct.items()}
        found = self._search(
            self._engine.encode([text for text, _ in prompts]),
            [vocabulary.encode(prefix) for _, prefix in prompts],
            [self._places(request.denied) for request in requests],
            [places[id(request.allowed)] for request in requests],
            width,
        )
        return [[(int(self._offered[each.item]), each.score) for each in items] for items in found]

    def _search(self, inputs, prefixes, deny, allow, width: int) -> list[list[FoundItem]]:
        """The engine's search, always in programs of one prefix and, mostly, of one length of denied items."""
        return self._engine.generator.search(
            inputs,
            self._trie,
            Decoding(max_tokens=1, beams=width, n_best=width),
            prefixes=prefixes,
            deny=deny,
            allow=allow,
            prefix_width=self._prefix_width,
            fewest_denied=_FEWEST_DENIED,
        )

    def _places(self, items: Collection[int]) -> np.ndarray:
        """Where items stand in the trie, without those that are not offered."""
        places = self._place[np.fromiter(items, np.int64, len(items))]
        return places[places >= 0]

    def _listed(self, request: Request, found: Sequence[tuple[int, float]]) -> Recommendations:
        found = found[: request.k]
        reasons = self._reasons(request, found) if request.evidence else {}
        return Recommendations(
            tuple(self._item(rank, item, score, reasons.get(item, ())) for rank, (item, score) in enumerate(found, 1)),
            "model",
            self._warnings(request, len(found)),
        )

    def _item(self, rank: int, item: int, score: float, reasons: Sequence[Reason] = ()) -> Recommendation:
        catalogue = self.knowledge.catalogue
        return Recommendation(rank, catalogue.ids[item], catalogue.titles[item], score, tuple(reasons))

    def _warnings(self, request: Request, count: int) -> tuple[str, ...]:
        warnings = []
        lost = len(request.history) - self.knowledge.read(request.interests)
        if lost > 0:
            warnings.append(f"the oldest {lost} of {len(request.history)} history entries are not read")
        if count < request.k:
            warnings.append(f"only {count} of {request.k} items are left by the filters, exclusions and history")
        return tuple(warnings)

    def _popular(self, request: Request) -> Recommendations:
        """What most took: the answer where nothing is known, and said to be that."""
        popularity = self.knowledge.popularity + 1  # an item that nobody took is last, not impossible
        left = self._offered if request.allowed is None else self._offered[self._places(request.allowed)]
        left = np.setdiff1d(left, sorted(request.denied))
        best = left[np.argsort(-popularity[left], kind="stable")[: request.k]]
        share = np.log(popularity / popularity.sum())
        items = tuple(self._item(rank, int(item), float(share[item])) for rank, item in enumerate(best, 1))
        unknown = "no user, history or interests are given: these are the most popular items"
        return Recommendations(items, "popularity", (unknown, *self._warnings(request, len(items))))

    def _reasons(self, request: Request, found: Sequence[tuple[int, float]]) -> dict[int, list[Reason]]:
        """For each item the entries without which it would be less likely, the most important first.

        Measured: the same request is asked again without each entry that the model reads, in one batch.
        """
        history = list(request.history)
        places = range(max(len(history) - self.knowledge.read(request.interests), 0), len(history))
        items = [item for item, _ in found]
        if not items or not places:
            return {}
        without = [dataclasses.replace(request, history=history[:n] + history[n + 1 :], allowed=items) for n in places]
        again = self._found(without, _width(request.k))
        effects = {item: [] for item in items}
        for n, scores in zip(places, map(dict, again), strict=True):
            for item, score in found:
                effects[item].append((score - scores[item], n))
        catalogue = self.knowledge.catalogue
        return {
            item: [
                Reason(catalogue.ids[history[n]], catalogue.titles[history[n]], effect)
                for effect, n in sorted(of_item, key=lambda pair: -pair[0])[:_REASONS]
                if effect > 0
            ]
            for item, of_item in effects.items()
        }

    # ------------------------------------------------------------------ being ready, and changing

    def warm_up(self, *, k: int = 10, most_requests: int = 1) -> float:
        """Compiles ahead for requests of `k` items, so many at once; returns seconds.

        After it such requests compile nothing, whatever their histories, interests and filters, as long as those of a
        batch have one filter, and none has more than 1024 items to leave out.
        """
        began = time.perf_counter()
        generator = self._engine.generator
        for rows in range_of_buckets([min(most_requests, generator.max_batch)]):
            for length in range_of_buckets([self._engine.lengths["inputs"]]):
                for allow in (None, range(len(self._offered))):
                    self._search([[1] * length] * rows, [()] * rows, [()] * rows, [allow] * rows, _width(k))
        return time.perf_counter() - began

    def replace_catalogue(self, catalogue: Catalogue, removed: Collection[str] = ()) -> None:
        """Recommends from a catalogue that begins with the old one's items: with other titles, and with new items.

        Nothing is trained, and within the trie's capacities nothing compiles. Items of the ids in `removed` are known
        in histories and never recommended. What is not seen yet is taken for the mean of what resembles it. Raises
        UserError for items that are missing, and for more new ones than there are spare tokens or codes.
        """
        old = self.knowledge
        if catalogue.ids[: len(old.catalogue)] != old.catalogue.ids:
            raise UserError("the new catalogue must begin with the old one's items in their order; remove by `removed`")
        index = old.index.extended(catalogue)
        gone = [self._number(catalogue, id) for id in removed]
        self._set(dataclasses.replace(old, catalogue=catalogue, index=index), gone, like=self._trie)
        generator = self._engine.generator
        if index.kind == "token":
            generator.params = with_rows_of_new_items(
                generator.params, index.sequences(self._engine.vocabulary), len(old.catalogue), catalogue
            )

    def _number(self, catalogue: Catalogue, id: str) -> int:
        if id not in catalogue.number_of:
            raise UserError(f"removed: no item has the id {id!r}{nearest(id, catalogue.ids)}")
        return catalogue.number_of[id]


def _width(k: int) -> int:
    return next((width for width in _WIDTHS if k <= width), power_of_two(k))
