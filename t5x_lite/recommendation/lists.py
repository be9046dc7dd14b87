"""Lists for a file of requests: resumable, and shared by several processes, as `infer` answers files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite import partitioning
from t5x_lite.decoding.engine import chosen_step
from t5x_lite.decoding.jobs import FileJob, identity
from t5x_lite.decoding.records import Record
from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import SEVERAL
from t5x_lite.recommendation.recommender import Recommendations, Recommender

_LISTS = ("history", "exclude", "filters", "candidates")
_FIELDS = ("user", "interests", *_LISTS)


def recommend_file(model_dir: str, input: str, output: str, *, k: int = 10, step: int | None = None) -> None:
    """Writes each record of `input` with its list to `output`, which is whole or not there.

    Fields of a record are those of `Recommender.request`: user, or history, interests, exclude, filters, candidates;
    others are carried along. Where one is wrong the record gets a `problem` instead of items. Raises UserError for
    files that cannot be read or written.
    """
    job = FileJob.check(input, output, Lists(k))
    partitioning.initialize_distributed()  # before a checkpoint is looked at, which asks for devices
    step = chosen_step(model_dir, step)
    job.run(Recommender.load(model_dir, step), {"model": identity(model_dir), "step": step})


@dataclasses.dataclass(frozen=True)
class Lists:
    """Asks for `k` items for each record."""

    k: int
    needed: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ("items", "source", "warnings", "problem")

    def described(self, recommender: Recommender) -> dict[str, Any]:
        """All of it that the lists depend on."""
        return {"mode": "recommend", "k": self.k}

    def results(self, recommender: Recommender, asked: Sequence[Record], first_number: int) -> list[Record]:
        """What the output adds to each record."""
        found = recommender.recommend_each([{"k": self.k} | _fields(record) for record in asked])
        return [{"items": [], "problem": str(each)} if isinstance(each, UserError) else _listed(each) for each in found]


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a request; a cell of CSV has several values with | between them, and an empty one none."""
    fields = {name: record[name] for name in _FIELDS if record.get(name) not in (None, "")}
    if isinstance(fields.get("user"), int):  # as many write an id in JSON
        fields["user"] = str(fields["user"])
    cells = {name: fields[name].split(SEVERAL) for name in _LISTS if isinstance(fields.get(name), str)}
    return fields | cells


def _listed(found: Recommendations) -> Record:
    items = [{"item": each.item, "title": each.title, "score": round(each.score, 6)} for each in found.items]
    return {"items": items, "source": found.source, "warnings": list(found.warnings)}
