"""What a recommender may learn from, and the questions it is asked: one held-out item after a history each."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from t5x_lite.errors import UserError
from t5x_lite.recommendation.interactions import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """M questions: which item did `user` take after `histories`? All of a history is older than the target."""

    user: Int32[np.ndarray, "M"]
    histories: list[Int32[np.ndarray, "L"]]
    target: Int32[np.ndarray, "M"]

    def __len__(self) -> int:
        return len(self.target)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """`train` has for each user the items that training may see, in the order of time; possibly none.

    `train_ratings` and `train_times` are those of `train`, or None.
    """

    num_items: int
    train: list[Int32[np.ndarray, "L"]]
    validation: Cases
    test: Cases
    train_ratings: list[Float32[np.ndarray, "L"]] | None = None
    train_times: list[Int64[np.ndarray, "L"]] | None = None

    @functools.cached_property
    def cold(self) -> Bool[np.ndarray, "N"]:
        """Items that no train sequence has."""
        cold = np.ones(self.num_items, bool)
        for items in self.train:
            cold[items] = False
        return cold

    def orders(self, user: int, count: int) -> list[Int64[np.ndarray, "L"]]:
        """`count` orders of a user's train items in which those of one time are shuffled among themselves."""
        if self.train_times is None:
            return [np.arange(len(self.train[user]))] * count
        times, rng = self.train_times[user], np.random.default_rng(user)
        return [np.lexsort((rng.random(len(times)), times)) for _ in range(count)]


def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last item is for test, the one before for validation; a user with fewer than 3 is all for training.

    UserError where no user has 3.
    """
    sequences = dataset.sequences()
    asked = [user for user, items in enumerate(sequences) if len(items) >= 3]
    if not asked:
        raise UserError(f"{dataset.name}: no user has 3 interactions or more, and one each is for validation and test")
    known = [len(items) - 2 if len(items) >= 3 else len(items) for items in sequences]
    return _split(dataset, sequences, known, *([(user, len(sequences[user]) - n) for user in asked] for n in (2, 1)))


def by_time(dataset: Dataset, validation: float = 0.1, test: float = 0.1) -> Split:
    """All users are cut at the same two times, from which on the last of these shares of all interactions begin.

    Training sees what is before the first. Each user's first interaction from a cut on is the question of that part,
    all before it the history; validation asks for none from the second cut on. Users without history are not asked.
    UserError where a part has no question.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise UserError(f"shares of validation {validation} and test {test}: both above 0, and less than 1 together")
    sequences = dataset.sequences()
    times = dataset.by_user(dataset.interactions.time)
    in_order = np.sort(dataset.interactions.time)
    first_cut, second_cut = (in_order[-max(1, round(share * len(in_order)))] for share in (validation + test, test))
    known = [int(np.searchsorted(time, first_cut)) for time in times]
    later = [int(np.searchsorted(time, second_cut)) for time in times]
    asked_first = [(user, n) for user, n in enumerate(known) if 0 < n < later[user]]
    asked_second = [(user, n) for user, n in enumerate(later) if 0 < n < len(times[user])]
    for part, asked in (("validation", asked_first), ("test", asked_second)):
        if not asked:
            raise UserError(f"{dataset.name}: no user has a history before the {part} time and an item after it")
    return _split(dataset, sequences, known, asked_first, asked_second)


def _split(
    dataset: Dataset,
    sequences: Sequence[np.ndarray],
    known: Sequence[int],
    validation: Sequence[tuple[int, int]],
    test: Sequence[tuple[int, int]],
) -> Split:
    """Training sees the first `known` of each user's items; a question is a user and the place of the target."""

    def cases(asked: Sequence[tuple[int, int]]) -> Cases:
        return Cases(
            user=np.array([user for user, _ in asked], np.int32),
            histories=[sequences[user][:place] for user, place in asked],
            target=np.array([sequences[user][place] for user, place in asked], np.int32),
        )

    def train(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [row[:n] for row, n in zip(values, known, strict=True)]

    ratings = dataset.ratings_in_order()
    return Split(
        num_items=len(dataset.catalogue),
        train=train(sequences),
        validation=cases(validation),
        test=cases(test),
        train_ratings=None if ratings is None else train(ratings),
        train_times=train(dataset.by_user(dataset.interactions.time)),
    )
