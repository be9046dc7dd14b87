"""Recommendations of a trained run: items that exist, are new to the user and pass the filters; scores and reasons."""

import dataclasses
import functools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.decoding.buckets import power_of_two, range_of_buckets
from t5x_lite.decoding.constrained import is_exact
from t5x_lite.decoding.engine import Engine
from t5x_lite.decoding.generator import FoundItem
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.trie import as_array, build_trie
from t5x_lite.errors import FieldError, UserError, about
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.newcomers import updated, with_rows_of_new_items
from t5x_lite.recommendation.resolve import Titles

_WIDTHS = (10, 50)  # numbers of beams, so that few programs compile; beyond, powers of two
_MOST_DENIED = 1024  # of one program: room for a long history; more become a filter
_ALWAYS_FILTERED = 20_000  # items up to which a filter that all of them pass costs next to nothing
_FILTERS_KEPT = 32  # lists of filters whose items are remembered
_REASONS = 3  # history entries that are named for an item


@dataclasses.dataclass(frozen=True)
class Request:
    """Who wants what: items taken, oldest first (numbers), and what was said, in words; both may be missing.

    `allowed` are the only items that may come (None: all), `denied` those that must not; what was taken comes again
    only where `exclude_seen` is off. `template` is the number of the wording that asks. Requests with the very same
    object as `allowed` share the work on it.
    """

    history: Sequence[int] = ()
    interests: str = ""
    k: int = 10
    allowed: Collection[int] | None = None
    denied: Collection[int] = ()
    exclude_seen: bool = True
    evidence: bool = False
    template: int = 0

    def __post_init__(self):
        if self.k < 1:
            raise FieldError("k", f"k is {self.k}; ask for at least 1 item")


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
    """A list, best first. `source` is 'model', or 'popularity' where nothing is known of who asks.

    `exact` says that all items were scored, so that no better one was missed; else it was a beam search.
    """

    items: tuple[Recommendation, ...]
    source: str
    warnings: tuple[str, ...] = ()
    exact: bool = True


class Recommender:
    """A run's model and what it knows of items and users; `offered` are the numbers of the items that may come.

    It never changes: `with_catalogue` makes another. With `like`, a recommender of the same model, whose weights may be
    others, the programs compiled for that one are used, and nothing compiles within its trie's capacities.
    """

    def __init__(
        self,
        engine: Engine,
        knowledge: Knowledge,
        *,
        offered: Collection[int] | None = None,
        like: "Recommender | None" = None,
    ):
        generator = engine.generator.sharing(like.engine.generator) if like else engine.generator
        shared = like is not None and generator is not engine.generator
        sequences = knowledge.index.sequences(engine.vocabulary)
        self.engine = dataclasses.replace(engine, generator=generator)
        self.knowledge = knowledge
        self.titles = Titles(knowledge.catalogue)
        self.offered = np.arange(len(sequences)) if offered is None else np.unique(as_array(offered))
        self._trie = build_trie([sequences[item] for item in self.offered], like=like._trie if shared else None)
        self._place = np.full(len(sequences), -1)
        self._place[self.offered] = np.arange(len(self.offered))
        self._all_places = np.arange(len(self.offered)) if len(self.offered) <= _ALWAYS_FILTERED else None
        # Of no prefix, its zeros are read as what stands before the beginning, so one width serves all.
        recent = [0] * knowledge.recent
        self._prefix_width = len(engine.vocabulary.encode(knowledge.text(recent))) if recent else 0
        # One array for all requests with the same filters, so that a batch works it out once.
        self._matching = functools.lru_cache(_FILTERS_KEPT)(knowledge.catalogue.matching)

    @classmethod
    def load(cls, model_dir: str, step: int | None = None) -> "Recommender":
        """Opens a run of gin/recommend.gin. UserError where it is none."""
        return cls(Engine.load(model_dir, step), Knowledge.load_run(model_dir))

    @property
    def compile_count(self) -> int:
        return self.engine.generator.compile_count

    # ------------------------------------------------------------------ asking

    def recommend(self, **fields: Any) -> Recommendations:
        """The list for a request of these fields, which are those of `request`."""
        return self.answer([self.request(**fields)])[0]

    def recommend_each(self, fields: Iterable[Mapping[str, Any]]) -> list[Recommendations | UserError]:
        """A list for each request of these fields, or what is wrong with it; good ones run as batches."""
        requests = [self._request_or_error(each) for each in fields]
        found = iter(self.answer([each for each in requests if isinstance(each, Request)]))
        return [next(found) if isinstance(each, Request) else each for each in requests]

    def _request_or_error(self, fields: Mapping[str, Any]) -> Request | UserError:
        try:
            return self.request(**fields)
        except UserError as error:
            return error

    def request(
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
        template: int = 0,
    ) -> Request:
        """What asks for the `k` best items for a known `user`, or after a `history`, or for stated `interests`.

        `filters` are those of `Catalogue.matching`; `history`, `exclude` and `candidates` are titles or ids, and
        `template` the number of a wording. FieldError for users, titles, filters and wordings that are not known.
        """
        for field, text in (("user", user or ""), ("interests", interests)):
            if not isinstance(text, str):
                raise FieldError(field, f"{field} is {text!r:.60}; give a text")
        lists = {"history": history, "candidates": candidates or (), "filters": filters, "exclude": exclude}
        for field, texts in lists.items():
            if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)):
                raise FieldError(field, f"{field} is {texts!r:.60}; give a list of texts")
        if user is not None and len(history):
            raise FieldError("user", "user and history: give the one or the other")
        if user is None:
            taken = self._numbers("history", history)
        else:
            with about("user"):
                taken = self.knowledge.histories[self.knowledge.user(user)].tolist()
        request = Request(
            history=taken,
            interests=interests,
            k=k,
            allowed=self._allowed(candidates, filters),
            denied=self._numbers("exclude", exclude),
            exclude_seen=exclude_seen,
            evidence=evidence,
            template=template,
        )
        if taken or interests:
            self.knowledge.prompt(taken, interests, template)  # raises where there is none
        return request

    def _allowed(self, candidates: Sequence[str] | None, filters: Sequence[str]) -> np.ndarray | None:
        """The only items that may come; None for all."""
        among = None if candidates is None else np.unique(self._numbers("candidates", candidates)).astype(int)
        for place, text in enumerate(filters):
            with about(f"filters[{place}]"):
                self._matching((text,))
        if not filters:
            return among
        matching = self._matching(tuple(filters))
        return matching if among is None else np.intersect1d(among, matching)

    def _numbers(self, field: str, texts: Sequence[str]) -> list[int]:
        """The items of these titles or ids."""
        numbers = []
        for place, text in enumerate(texts):
            with about(f"{field}[{place}]"):
                numbers.append(self.titles.resolve(text))
        return numbers

    def answer(self, requests: Sequence[Request]) -> list[Recommendations]:
        """A list for each request, in their order; those of one width run as batches."""
        asked = {i: self.resolved(request) for i, request in enumerate(requests)}
        known = [i for i, request in asked.items() if len(request.history) or request.interests]
        answers = {i: self._popular(asked[i]) for i in asked.keys() - set(known)}
        for width in sorted({width_of(asked[i].k) for i in known}):
            of_width = [i for i in known if width_of(asked[i].k) == width]
            found = self._found([asked[i] for i in of_width], width)
            answers |= {i: self._listed(asked[i], items) for i, items in zip(of_width, found, strict=True)}
        return [answers[i] for i in range(len(requests))]

    def resolved(self, request: Request) -> Request:
        """The request with all that must not come among its denied items, or left out of the allowed ones."""
        denied = set(request.denied) | (set(request.history) if request.exclude_seen else set())
        if len(denied) <= _MOST_DENIED:
            return dataclasses.replace(request, denied=denied)
        # A longer list would need a program of its own; a filter is as long as the catalogue anyway.
        allowed = self.offered if request.allowed is None else as_array(request.allowed)
        return dataclasses.replace(request, allowed=np.setdiff1d(allowed, as_array(denied)), denied=())

    def _found(self, requests: Sequence[Request], width: int, kind: str | None = None) -> list[list[tuple[int, float]]]:
        """(item, log-probability) of the best items of each request, asked by a prompt of `kind` where it is given."""
        vocabulary = self.engine.vocabulary
        prompts = [
            self.knowledge.prompt(request.history, request.interests, request.template, kind) for request in requests
        ]
        distinct = {id(request.allowed): request.allowed for request in requests}
        places = {key: None if items is None else self._places(items) for key, items in distinct.items()}
        found = self._search(
            self.engine.encode([text for text, _ in prompts]),
            [vocabulary.encode(prefix) for _, prefix in prompts],
            [self._places(request.denied) for request in requests],
            [places[id(request.allowed)] for request in requests],
            width,
        )
        return [[(int(self.offered[each.item]), each.score) for each in items] for items in found]

    def _search(self, inputs, prefixes, deny, allow, width: int) -> list[list[FoundItem]]:
        """The engine's search, always in programs of one prefix, number of denied items, and number of filters.

        Or of no filter, where the catalogue is so large that it costs more than another program does.
        """
        generator = self.engine.generator
        if self._all_places is not None:
            allow = [self._all_places if places is None else places for places in allow]
        return generator.search(
            inputs,
            self._trie,
            _options(width),
            prefixes=prefixes,
            deny=deny,
            allow=allow,
            prefix_width=self._prefix_width,
            fewest_denied=_MOST_DENIED,
            fewest_filters=generator.max_batch,
        )

    def _places(self, items: Collection[int]) -> np.ndarray:
        """Where items stand in the trie, without those that are not offered."""
        places = self._place[as_array(items)]
        return places[places >= 0]

    def _listed(self, request: Request, found: Sequence[tuple[int, float]]) -> Recommendations:
        found = found[: request.k]
        reasons = self._reasons(request, found) if request.evidence else {}
        return Recommendations(
            tuple(self._item(rank, item, score, reasons.get(item, ())) for rank, (item, score) in enumerate(found, 1)),
            "model",
            self._warnings(request, len(found)),
            is_exact(self._trie, _options(width_of(request.k))),
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
        left = self.offered if request.allowed is None else self.offered[self._places(request.allowed)]
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
        # In the same wording, also without the only entry.
        again = self._found(without, width_of(request.k), self.knowledge.kind(history, request.interests))
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

    def log_probability(self, request: Request, item: int) -> float:
        """Of one item after a request, by teacher forcing: what a search must give it as its score."""
        text, prefix = self.knowledge.prompt(request.history, request.interests, request.template)
        vocabulary = self.engine.vocabulary
        (sequence,) = self.knowledge.index.sequences(vocabulary)[item : item + 1]
        written = [*vocabulary.encode(prefix), *sequence]
        (scores,) = self.engine.generator.score(self.engine.encode([text]), [written])
        return sum(scores[-len(sequence) :])

    # ------------------------------------------------------------------ being ready, and changing

    def warm_up(self, *, widths: Iterable[int] = (10,), most_requests: int = 1) -> float:
        """Compiles ahead for lists of up to each of `widths` items, so many requests at once; returns seconds.

        After it such requests compile nothing, whatever their histories, interests, wordings, filters and exclusions.
        Requests with evidence neither, where `most_requests` is the generator's `max_batch`: those ask as many at once
        themselves.
        """
        began = time.perf_counter()
        generator = self.engine.generator
        lengths = range_of_buckets([self.engine.lengths["inputs"]])
        of_bucket = {max(generator.shortest_bucket, length): length for length in lengths}
        for width in sorted(set(map(width_of, widths))):
            for rows in range_of_buckets([min(most_requests, generator.max_batch)]):
                for length in of_bucket.values():
                    for allow in (None, self.offered[:1]) if self._all_places is None else (None,):
                        self._search([[1] * length] * rows, [()] * rows, [()] * rows, [allow] * rows, width)
        return time.perf_counter() - began

    def with_catalogue(self, catalogue: Catalogue) -> "Recommender":
        """A recommender that offers exactly these items; this one goes on as it is.

        Known ids may have other titles and attributes, unknown ones are new items: nothing is trained, and what is not
        seen yet is taken for the mean of what resembles it. Items that are missing are known in histories, and never
        recommended. Within the trie's capacities nothing compiles. UserError for more new items than there are spare
        tokens or codes.
        """
        if not len(catalogue):
            raise UserError("the catalogue has no item; leave one that can be recommended")
        known = self.knowledge
        everything = updated(known.catalogue, catalogue)
        index = known.index.extended(everything)
        params = self.engine.generator.params
        if index.kind == "token":
            sequences = index.sequences(self.engine.vocabulary)
            params = with_rows_of_new_items(params, sequences, len(known.catalogue), everything)
        return Recommender(
            dataclasses.replace(self.engine, generator=self.engine.generator.with_params(params)),
            dataclasses.replace(known, catalogue=everything, index=index),
            offered=[everything.number_of[id] for id in catalogue.ids],
            like=self,
        )


def width_of(k: int) -> int:
    """The beams that a list of `k` items is searched with; lists of one width run together."""
    return next((width for width in _WIDTHS if k <= width), power_of_two(k))


def _options(width: int) -> Decoding:
    return Decoding(max_tokens=1, beams=width, n_best=width)
