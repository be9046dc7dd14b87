"""Recommendation: tasks over one data set of interactions, and three mixtures of them.

Which data set, its split and how items are written is `recommendation_data` in gin; gin/recommend.gin trains on
MovieLens-100K. Training sees `train` of the split and nothing else; `validation` and `test` ask for the held-out items.

recommend_next                 what comes after a history: the model writes the items that follow, one after another.
                               The decoder is given the last items of the history as what it wrote so far.
recommend_rated                the same after lists of what was liked and disliked
recommend_interests            what fits what somebody says; recommend_history_interests: and what they took before
recommend_choose               which of twenty items
recommend_similar              what is taken after one item
recommend_will_like            yes or no, given rated items; recommend_rating: how many of five stars
recommend_item_of_title, recommend_title_of_item, recommend_about_item: what the items are

`recommend_implicit` has those that need no ratings, `recommend_histories` those that need no attributes of items, nor
titles, either. Wordings are in recommendation_wordings.py, what people say they
want in recommendation_interests.py.
"""

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from t5x_lite import config
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.data.metrics import classification, exact_match
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.data import RecommendationData
from t5x_lite.recommendation.index import ItemIndex
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.splits import Cases, Split
from t5x_lite.recommendation.task_metrics import choice_auc, ranking, share_accepted, stars
from tasks import recommendation_wordings as wordings
from tasks.recommendation_interests import Interest, common_interests, interests_of, phrases

RATED_ITEMS = 30  # rated items in a prompt
RATED_AHEAD = 24  # and in an answer
KEPT_RATINGS = (0.5, 1.0)  # least and most of a user's that a row of training is made of
CANDIDATES = 20
LOOKED_AT = 64  # items from a place on, of which those that fit an interest follow
LIKED_FROM = 4  # of five stars
STARS = ("one", "two", "three", "four", "five")  # a word is one piece; of a digit SentencePiece parts the blank
ORDERS = 16  # of what was taken at one time
AFTER_ONE = 8  # items that are similar to one: those taken soon after it
EVALUATED_INTERESTS = 300  # questions of stated interests

Row = dict


def data() -> RecommendationData:
    """What gin asks for. Ask once for all rows: gin takes longer than a row does."""
    return config.build("recommendation_data")


# What a row is made of ---------------------------------------------------------------------


def history(knowledge: Knowledge, items: Sequence[int]) -> Row:
    """The items that the encoder reads."""
    return {"history": knowledge.text(items[-knowledge.longest :])}


def question(knowledge: Knowledge, items: np.ndarray, target: int) -> Row:
    """A held-out question after `items`: the last ones are the decoder's, and none of them may come again."""
    older, prefix = knowledge.parted(items)
    return history(knowledge, older) | {"prefix": prefix, "denied": items.tolist(), "answer": knowledge.text([target])}


def rated(index: ItemIndex, items: Sequence[int], ratings: Sequence[float]) -> str:
    """Items with their stars: '<item_3>five<item_9>two'."""
    form = " {} {};" if index.kind == "title" else "{}{}"
    pairs = zip(items[-RATED_ITEMS:], ratings[-RATED_ITEMS:], strict=True)
    return "".join(form.format(index.texts[item], whole_stars(rating)) for item, rating in pairs) or "nothing"


def liked_and_disliked(knowledge: Knowledge, items: np.ndarray, ratings: np.ndarray) -> Row:
    recent, stars_of = items[-knowledge.longest :], ratings[-knowledge.longest :]
    liked = stars_of >= LIKED_FROM
    return {"liked": knowledge.text(recent[liked]), "disliked": knowledge.text(recent[~liked])}


def windows(step: int, rated: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(a user's training items, their ratings if `rated`, a place): every `step`-th place of everybody's.

    Nothing tells the order of what was taken at one time, so it is another one in each of the windows that overlap.
    """
    split = data().split
    ratings = ratings_of("train") if rated else split.train
    for user, (items, values) in enumerate(zip(split.train, ratings, strict=True)):
        orders = split.orders(user, ORDERS)
        for place in range(user % step, len(items), step):
            order = orders[place % ORDERS]
            yield items[order], values[order], place


def ratings_of(part: str) -> Sequence[np.ndarray]:
    """Each user's ratings, of training only or all; UserError where there are none."""
    ratings = data().split.train_ratings if part == "train" else data().knowledge.ratings
    if ratings is None:
        raise UserError(
            f"{data().dataset.name} has no ratings: set MIXTURE_OR_TASK_NAME to recommend_implicit, which needs none"
        )
    return ratings


def cases(part: str) -> Iterator[tuple[int, np.ndarray, int]]:
    """(user, history, target) of each held-out question."""
    held_out: Cases = getattr(data().split, part)
    yield from zip(held_out.user.tolist(), held_out.histories, held_out.target.tolist(), strict=True)


# Rows of each task -------------------------------------------------------------------------


def next_train() -> Iterable[Row]:
    knowledge, ahead = data().knowledge, data().ahead
    for items, _, place in windows(1):
        yield history(knowledge, items[:place]) | {"answer": knowledge.text(items[place : place + ahead])}


def next_held_out(part: str) -> Iterable[Row]:
    knowledge = data().knowledge
    return (question(knowledge, items, target) for _, items, target in cases(part))


def rated_train() -> Iterable[Row]:
    knowledge, ahead = data().knowledge, data().ahead
    for items, ratings, place in windows(3, rated=True):
        following = knowledge.text(items[place : place + ahead])
        yield liked_and_disliked(knowledge, items[:place], ratings[:place]) | {"answer": following}


def rated_held_out(part: str) -> Iterable[Row]:
    ratings, knowledge = ratings_of(part), data().knowledge
    for user, items, target in cases(part):
        older, _ = knowledge.cut(items)
        liked = liked_and_disliked(knowledge, older, ratings[user][: len(older)])
        yield question(knowledge, items, target) | liked


def stated(interest: Interest, rng: random.Random, split: str) -> Row:
    return {"interests": rng.choice(phrases(interest, split))}


@functools.cache
def interests_by_item(catalogue: Catalogue) -> list[list[Interest]]:
    return [interests_of(catalogue, item) for item in range(len(catalogue))]


def interests_train(with_history: bool) -> Iterable[Row]:
    """What a user took from a place on that fits an interest which the first of it fits; liked or not."""
    knowledge, ahead, of_item = data().knowledge, data().ahead, interests_by_item(data().dataset.catalogue)
    if not any(of_item):
        raise UserError(
            f"{data().dataset.name} has no attribute that items share, so nobody can ask for it: set "
            "MIXTURE_OR_TASK_NAME to recommend_histories, which needs none"
        )
    rng = random.Random(f"interests {with_history}")
    for items, _, place in windows(2):
        possible = of_item[items[place]]
        if not possible:
            continue
        interest = rng.choice(possible)
        fitting = [item for item in items[place : place + LOOKED_AT] if interest in of_item[item]]
        before = items[:place] if with_history else items[:0]
        answer = knowledge.text(fitting[:ahead])
        yield history(knowledge, before) | stated(interest, rng, "seen") | {"answer": answer, "fitting": [answer]}


def interests_held_out(part: str, with_history: bool) -> Iterable[Row]:
    """Common interests in wordings never trained on; any item that fits is right. Histories are those of users."""
    catalogue, knowledge = data().dataset.catalogue, data().knowledge
    rng = random.Random(f"interests {part} {with_history}")
    possible = common_interests(catalogue, 20)
    asked = list(cases(part))
    count = len(asked) if with_history and possible else len(possible)
    for number in range(min(EVALUATED_INTERESTS, count)):
        interest = possible[number % len(possible)]
        _, items, _ = asked[number % len(asked)]
        items = items if with_history else items[:0]
        fitting = interest.items(catalogue)
        row = history(knowledge, items) | {"prefix": "", "denied": items.tolist()}
        answers = [knowledge.text([item]) for item in fitting]
        yield row | stated(interest, rng, "unseen") | {"answer": answers[0], "fitting": answers}


def candidates(split: Split, items: np.ndarray, target: int, rng: random.Random) -> list[int]:
    """The target among others that were not taken, drawn as often as they are popular."""
    drawn: set[int] = {target}
    everything = popular(split)
    taken = set(items.tolist())
    left = split.num_items - len(taken - drawn)  # of a small catalogue somebody has taken nearly all
    while len(drawn) < min(CANDIDATES, left):
        other = everything[rng.randrange(len(everything))]
        if other not in taken:
            drawn.add(other)
    return sorted(drawn)


@functools.cache
def popular(split: Split) -> list[int]:
    """Every item as often as training has it, and once more, so that there are enough."""
    return [*np.concatenate(split.train).tolist(), *range(split.num_items)]


def choose_train() -> Iterable[Row]:
    knowledge, split, rng = data().knowledge, data().split, random.Random("candidates")
    for items, _, place in windows(4):
        among = candidates(split, items, items[place], rng)
        answer = {"candidates": knowledge.text(among), "answer": knowledge.text([items[place]])}
        yield history(knowledge, items[:place]) | answer


def choose_held_out(part: str) -> Iterable[Row]:
    knowledge, split, rng = data().knowledge, data().split, random.Random(f"candidates {part}")
    for _, items, target in cases(part):
        among = candidates(split, items, target, rng)
        row = {"candidates": knowledge.text(among), "answer": knowledge.text([target])}
        yield history(knowledge, items) | row | {"prefix": "", "denied": (), "allowed": among}


def similar_train() -> Iterable[Row]:
    knowledge, ahead = data().knowledge, min(AFTER_ONE, data().ahead)
    for items, _, place in windows(2):
        if place + 1 < len(items):
            following = items[place + 1 : place + 1 + ahead]
            yield {"item": knowledge.text([items[place]]), "answer": knowledge.text(following)}


def similar_held_out(part: str) -> Iterable[Row]:
    knowledge = data().knowledge
    for _, items, target in cases(part):
        last = {"item": knowledge.text(items[-1:]), "answer": knowledge.text([target])}
        yield last | {"prefix": "", "denied": items.tolist()}


def yes_no(rating: float) -> str:
    return "yes" if rating >= LIKED_FROM else "no"


def will_like_train() -> Iterable[Row]:
    knowledge = data().knowledge
    for items, ratings, place in windows(3, rated=True):
        before = rated(knowledge.index, items[:place], ratings[:place])
        yield {"rated": before, "item": knowledge.text([items[place]]), "answer": yes_no(ratings[place])}


def will_like_held_out(part: str) -> Iterable[Row]:
    ratings, knowledge = ratings_of(part), data().knowledge
    for user, items, target in cases(part):
        place = len(items)
        before = rated(knowledge.index, items, ratings[user][:place])
        yield {"rated": before, "item": knowledge.text([target]), "answer": yes_no(ratings[user][place])}


def ratings_ahead() -> int:
    """How many ratings an answer has; a title ends its text, so there it is one."""
    return RATED_AHEAD if data().ahead > 1 else 1


def rating_train() -> Iterable[Row]:
    """Rated items, one more, and as the answer its stars, the next item, its stars, and so on: many ratings a row.

    Of a drawn half to all of a user's ratings: by all of them a model would know the user, and learn answers by heart.
    """
    knowledge, ahead = data().knowledge, ratings_ahead()
    rng = np.random.default_rng(0)
    for items, stars_of, place in windows(1, rated=True):
        kept = rng.random(len(items)) < rng.uniform(*KEPT_RATINGS)
        kept[place] = True
        items, stars_of, place = items[kept], stars_of[kept], int(kept[:place].sum())
        after = slice(place + 1, place + ahead)
        following = rated(knowledge.index, items[after], stars_of[after]) if len(items[after]) else ""
        yield {
            "rated": rated(knowledge.index, items[:place], stars_of[:place]),
            "item": knowledge.text([items[place]]),
            "answer": whole_stars(stars_of[place]) + following,
        }


def rating_held_out(part: str) -> Iterable[Row]:
    """As in training: asked for an item of some time ago, the decoder has rated the ones up to the target."""
    ratings, knowledge, ahead = ratings_of(part), data().knowledge, ratings_ahead()
    for user, items, target in cases(part):
        stars_of, first = ratings[user], max(len(items) - ahead + 1, 0)
        row = {
            "rated": rated(knowledge.index, items[:first], stars_of[:first]),
            "answer": whole_stars(stars_of[len(items)]),
        }
        if first == len(items):
            yield row | {"item": knowledge.text([target]), "prefix": ""}
            continue
        after = slice(first + 1, len(items))
        between = rated(knowledge.index, items[after], stars_of[after]) if len(items[after]) else ""
        prefix = whole_stars(stars_of[first]) + between + knowledge.text([target])
        yield row | {"item": knowledge.text([items[first]]), "prefix": prefix}


def whole_stars(rating: float) -> str:
    """A rating as a label; UserError for one that is not of 0 to 5 stars."""
    if not 0 <= rating <= 5:
        raise UserError(f"rating {rating:g}: ratings are 0 to 5 stars here; scale them, or use recommend_implicit")
    return STARS[min(max(int(rating + 0.5), 1), 5) - 1]


def items() -> Iterable[Row]:
    catalogue, index = data().dataset.catalogue, data().index
    for number, title in enumerate(catalogue.titles):
        known = [value for values in catalogue.attributes.values() for value in values[number]]
        yield {"item": index.texts[number], "title": title, "about": ", ".join(known) or "unknown"}


def answered_by(field: str) -> Iterable[Row]:
    return (row | {"answer": row[field], "prefix": "", "denied": ()} for row in items())


# Registration ------------------------------------------------------------------------------


def held_out(train: Callable[[], Iterable[Row]], rows: Callable[[str], Iterable[Row]]) -> Rows:
    """A source whose validation and test are rows of their questions."""
    splits = {part: functools.partial(rows, part) for part in ("validation", "test")}
    return Rows({"train": train} | splits, costly=True)


def of_items(field: str) -> Rows:
    """Training and validation are the same items: what is asked for is the catalogue, in other wordings."""
    rows = functools.partial(answered_by, field)
    return Rows({"train": rows, "validation": rows, "test": rows}, costly=True)


def register(
    name: str, source: Rows, templates: Sequence[InstructionTemplate], metrics: Sequence[Callable], **arguments: Any
) -> None:
    register_task(f"recommend_{name}", source, templates, metrics=metrics, renderings_per_row=1, **arguments)


register("next", held_out(next_train, next_held_out), wordings.NEXT, [ranking], answer_with=BestItems())
register("rated", held_out(rated_train, rated_held_out), wordings.RATED, [ranking], answer_with=BestItems())
for _name, _with_history, _templates in (
    ("interests", False, wordings.INTERESTS),
    ("history_interests", True, wordings.HISTORY_AND_INTERESTS),
):
    register(
        _name,
        held_out(
            functools.partial(interests_train, _with_history),
            functools.partial(interests_held_out, with_history=_with_history),
        ),
        _templates,
        [share_accepted],
        answers_field="fitting",
        answer_with=BestItems(),
    )
register("choose", held_out(choose_train, choose_held_out), wordings.CHOOSE, [ranking], answer_with=BestItems())
register("similar", held_out(similar_train, similar_held_out), wordings.SIMILAR, [ranking], answer_with=BestItems())
register(
    "will_like",
    held_out(will_like_train, will_like_held_out),
    wordings.WILL_LIKE,
    [classification(("yes", "no")), choice_auc],
    answer_with=Labels(("yes", "no")),
)
register(
    "rating",
    held_out(rating_train, rating_held_out),
    wordings.RATING,
    [stars(STARS)],
    answer_with=Labels(STARS),
)
register("item_of_title", of_items("item"), wordings.ITEM_OF_TITLE, [ranking], answer_with=BestItems())
register("title_of_item", of_items("title"), wordings.TITLE_OF_ITEM, [exact_match])
register("about_item", of_items("about"), wordings.ABOUT_ITEM, [exact_match])

# How often each is drawn: the next item is what a recommender is for.
HISTORIES = {"next": 10.0, "choose": 0.5, "similar": 0.5}
ATTRIBUTES = {"history_interests": 4.0, "interests": 4.0, "item_of_title": 0.5, "title_of_item": 0.5, "about_item": 1.0}
RATINGS = {"rated": 1.0, "rating": 10.0, "will_like": 0.5}

for _mixture, _rates in (
    ("recommend", HISTORIES | ATTRIBUTES | RATINGS),
    ("recommend_implicit", HISTORIES | ATTRIBUTES),
    ("recommend_histories", HISTORIES),
):
    _named = {f"recommend_{name}": rate for name, rate in _rates.items()}
    register_mixture(_mixture, list(_named), rates=_named)
