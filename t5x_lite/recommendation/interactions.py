"""Who took what and when, and the order of a user's interactions."""

import dataclasses
import functools
import hashlib

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt64

from t5x_lite.recommendation.catalogue import Catalogue

_CHUNK = 1 << 16  # interactions whose texts are made at once


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """M interactions: numbers of a user and an item, time as the file has it, and a rating if the file has ratings.

    `users` are the original ids; a user's number is the place there.
    """

    users: tuple[str, ...]
    user: Int32[np.ndarray, "M"]
    item: Int32[np.ndarray, "M"]
    time: Int64[np.ndarray, "M"]
    rating: Float32[np.ndarray, "M"] | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue and what users did with its items."""

    name: str
    catalogue: Catalogue
    interactions: Interactions

    def core(self, k: int) -> "Dataset":
        """The k-core: the largest part in which every user and every item has k interactions or more.

        Users and items are numbered anew, in their old order.
        """
        data = self.interactions
        kept = np.ones(len(data), bool)
        while True:
            users = np.bincount(data.user[kept], minlength=len(data.users)) >= k
            items = np.bincount(data.item[kept], minlength=len(self.catalogue)) >= k
            remaining = kept & users[data.user] & items[data.item]
            if (remaining == kept).all():
                break
            kept = remaining
        interactions = Interactions(
            users=tuple(data.users[number] for number in np.flatnonzero(users)),
            user=(np.cumsum(users) - 1)[data.user[kept]].astype(np.int32),
            item=(np.cumsum(items) - 1)[data.item[kept]].astype(np.int32),
            time=data.time[kept],
            rating=None if data.rating is None else data.rating[kept],
        )
        return Dataset(self.name, self.catalogue.take(np.flatnonzero(items)), interactions)

    def sequences(self) -> list[Int32[np.ndarray, "L"]]:
        """Each user's items in the order of time.

        Equal times are ordered by the hex digest of sha256("user|item|timestamp"), so that no order of a file or of
        ids, which may have been made from the order that is to be predicted, tells anything.
        """
        return self.by_user(self.interactions.item)

    def ratings_in_order(self) -> list[Float32[np.ndarray, "L"]] | None:
        """The ratings of `sequences`, or None where there are none."""
        return None if self.interactions.rating is None else self.by_user(self.interactions.rating)

    def by_user(self, values: np.ndarray) -> list[np.ndarray]:
        """Values that belong to the interactions, for each user in the order of `sequences`."""
        return np.split(values[self._order], self._ends[:-1]) if len(self._ends) else []

    @functools.cached_property
    def _ends(self) -> Int64[np.ndarray, "U"]:
        return np.cumsum(np.bincount(self.interactions.user, minlength=len(self.interactions.users)))

    @functools.cached_property
    def _order(self) -> Int64[np.ndarray, "M"]:
        data = self.interactions
        order = np.lexsort((data.time, data.user))
        user, time = data.user[order], data.time[order]
        same_as_before = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        tied = np.flatnonzero(np.append(same_as_before, False) | np.append(False, same_as_before))
        group = np.cumsum(np.append(True, ~same_as_before), dtype=np.int32)[tied]
        parts = [self._digests(order[tied[n : n + _CHUNK]]) for n in range(0, len(tied), _CHUNK)]
        if parts:
            order[tied] = order[tied][np.lexsort((np.concatenate(parts), group))]
        return order

    def _digests(self, places: Int64[np.ndarray, "R"]) -> UInt64[np.ndarray, "R"]:
        """The first 8 bytes, which no two ever share, of what orders interactions of one time."""
        data, ids = self.interactions, self.catalogue.ids
        rows = zip(data.user[places].tolist(), data.item[places].tolist(), data.time[places].tolist(), strict=True)
        texts = (f"{data.users[user]}|{ids[item]}|{time}" for user, item, time in rows)
        return np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts), ">u8")
