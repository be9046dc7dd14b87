"""The data of a recommendation run as gin asks for it: read, cut, split and indexed once a process."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from t5x_lite.errors import UserError, nearest
from t5x_lite.recommendation.formats import open_dataset
from t5x_lite.recommendation.index import ItemIndex, code_index, title_index, token_index
from t5x_lite.recommendation.interactions import Dataset
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.splits import Split, by_time, leave_one_out

_AHEAD = 16

_SPLITS: Mapping[str, Callable[[Dataset], Split]] = {"leave_one_out": leave_one_out, "by_time": by_time}
_INDEXES: Mapping[str, Callable[[Dataset, Split], ItemIndex]] = {
    "title": lambda dataset, _: title_index(dataset.catalogue),
    "token": lambda dataset, _: token_index(dataset.catalogue),
    "codes": lambda dataset, split: code_index(dataset.catalogue, split),
}


@dataclasses.dataclass(frozen=True, eq=False)
class RecommendationData:
    """A data set, what of it training may see, and the texts of its items.

    A user's last `recent` items go to the decoder and up to `longest` before them to the encoder. In training up to
    `ahead` items follow a history: a title ends its text, so there it is one.
    """

    dataset: Dataset
    split: Split
    index: ItemIndex
    recent: int
    longest: int

    @property
    def ahead(self) -> int:
        return 1 if self.index.kind == "title" else _AHEAD

    @functools.cached_property
    def knowledge(self) -> Knowledge:
        """What is saved with the run: all interactions, the held-out ones too, since it recommends what comes next."""
        dataset = self.dataset
        users = dataset.interactions.users
        sequences, ratings = dataset.sequences(), dataset.ratings_in_order()
        return Knowledge(dataset.catalogue, self.index, users, sequences, ratings, self.recent, self.longest)


@functools.cache
def recommendation_data(
    dataset: str = "ml-100k",
    index: str = "token",
    split: str = "leave_one_out",
    min_interactions: int = 5,
    recent: int = 12,
    longest: int = 30,
) -> RecommendationData:
    """`dataset` is "ml-100k" or a path that `open_dataset` knows; `min_interactions` cuts it to that core, 0 to none.

    With titles all of a history goes to the encoder, since a decoder that has ended a title does not go on. Raises
    UserError for what is not there, and for an unknown index or split.
    """
    for name, value, known in (("index", index, _INDEXES), ("split", split, _SPLITS)):
        if value not in known:
            raise UserError(f"recommendation_data.{name} {value!r}{nearest(value, known)}; one of {', '.join(known)}")
    for name, value in (("recent", recent), ("longest", longest)):
        if value < 1:
            raise UserError(f"recommendation_data.{name} is {value}; it must be at least 1")
    data = open_dataset(dataset)
    data = data.core(min_interactions) if min_interactions else data
    if not len(data.interactions):
        raise UserError(
            f"{dataset}: nobody and nothing has {min_interactions} interactions; set recommendation_data."
            "min_interactions lower"
        )
    parts = _SPLITS[split](data)
    found = _INDEXES[index](data, parts)
    return RecommendationData(data, parts, found, 0 if found.kind == "title" else recent, longest)
