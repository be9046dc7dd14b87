"""Rows x instruction templates: the examples behind a registered task, in plain Python."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from t5x_lite.data.sources import Row, Source
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError, nearest

MAX_FEW_SHOT = 5

_ASKED_WITH = ("prefix", "denied", "allowed")

# How often another exemplar is looked for before the train split is said to have none left.
_ATTEMPTS = 500


@dataclasses.dataclass(frozen=True)
class Labels:
    """The answer is the likeliest of these texts; metrics get the probability of each as a prediction's score.

    A row may have `prefix`, text that the decoder is given before it.
    """

    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BestItems:
    """The answer is a list of the `count` best items of the run's catalogue, best first.

    Rows of what is not trained on have `prefix`, text that the decoder is given, `denied`, numbers of items that must
    not come, and perhaps `allowed`, of those that may.
    """

    count: int = 10


@dataclasses.dataclass(frozen=True)
class Instructions:
    """A source, its wordings, and how they are rendered: what `register_task` puts behind a SeqIO task."""

    name: str
    source: Source
    templates: tuple[InstructionTemplate, ...]
    few_shot: int = 0
    renderings_per_row: int | None = None
    answers_field: str | None = None
    answer_with: Labels | BestItems | None = None

    def render(self, split: str) -> Iterator[dict[str, Any]]:
        """Rendered examples: rows x seen wordings of 'train', rows x all wordings of any other split."""
        for number, row in enumerate(self.source.rows(split)):
            yield from self.render_row(split, number, row)

    def render_row(self, split: str, number: int, row: Row) -> Iterator[dict[str, Any]]:
        """The rendered examples of one row, the `number`-th of its split."""
        for template in self.templates_of(split, number):
            shown = self._exemplars(row, (split, number), template)
            inputs, targets = template.render_few_shot(row, shown)
            yield {
                "inputs": inputs,
                "targets": targets,
                "template": template.name,
                "template_split": template.split,
                "answers": self._answers(row, targets),
                **{name: row[name] for name in _ASKED_WITH if name in row},
            }

    def tokenize(
        self, example: Mapping[str, Any], vocabulary: Vocabulary, lengths: Mapping[str, int]
    ) -> dict[str, Any]:
        """A rendered example with token ids, cut to `lengths`, EOS kept.

        The same as SeqIO's preprocessors of the registered task give (tested), at a tenth of their time.
        """
        tokens = {
            key: [*vocabulary.encode(example[key])[: length - 1], vocabulary.eos_id] for key, length in lengths.items()
        }
        return {**example, **{f"{key}_pretokenized": example[key] for key in tokens}, **tokens}

    def templates_of(self, split: str, row: int) -> Sequence[InstructionTemplate]:
        """The wordings of one row; of several for training, `renderings_per_row` chosen by hash."""
        if split != "train":
            return self.templates
        seen = [template for template in self.templates if template.split == "seen"]
        if self.renderings_per_row is None:
            return seen
        by_hash = sorted(seen, key=lambda template: _hash(self.name, row, template.name))
        return by_hash[: self.renderings_per_row]

    def size(self, split: str) -> int:
        """The number of rendered examples."""
        return self.source.num_rows(split) * len(self.templates_of(split, 0))

    def fingerprint(self, split: str) -> dict[str, str]:
        """Hashes of all that the text of a split's examples follows from."""
        texts = [dataclasses.astuple(template) for template in self.templates]
        rows = [self.source.identity(name) for name in ({split, "train"} if self.few_shot else {split})]
        wordings = [texts, self.few_shot, self.renderings_per_row]
        return {"rows": _hex(sorted(rows)), "wordings": _hex(wordings)}

    def check(self) -> None:
        """Raises UserError for what could not be rendered: names, splits, fields a row in memory lacks."""
        where = f"task {self.name!r}"
        names = [template.name for template in self.templates]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise UserError(f"{where}: two templates are named {repeated!r}; names tell them apart in reports")
        if not any(template.split == "seen" for template in self.templates):
            raise UserError(f"{where}: no template of split 'seen', so nothing could be trained")
        splits = self.source.splits
        if "train" not in splits:
            raise UserError(f"{where}: no split 'train'{nearest('train', splits)}; there are {splits}")
        if not 0 <= self.few_shot <= MAX_FEW_SHOT:
            raise UserError(f"{where}: few_shot is {self.few_shot}; it must be 0 to {MAX_FEW_SHOT}")
        if self.renderings_per_row is not None and self.renderings_per_row < 1:
            raise UserError(f"{where}: renderings_per_row is {self.renderings_per_row}; at least 1, or None for all")
        if self.source.costly:
            return
        first = next(iter(self.source.rows("train")), None)
        if first is None:
            raise UserError(f"{where}: its train split has no rows")
        for template in self.templates:
            try:
                template.render(first)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        self._answers(first, "")

    @functools.cached_property
    def _train_rows(self) -> Sequence[Row]:
        return list(self.source.rows("train"))

    def _exemplars(self, own: Row, key: tuple[str, int], template: InstructionTemplate) -> list[Row]:
        """`few_shot` rows of the train split chosen by hash; none that reads as this row, or as another."""
        if not self.few_shot:
            return []
        rows = self._train_rows
        taken = [template.render(own)]
        chosen: list[Row] = []
        for attempt in range(_ATTEMPTS):
            row = rows[_hash(self.name, *key, template.name, attempt) % len(rows)]
            text = template.render(row)
            if text in taken:
                continue
            taken.append(text)
            chosen.append(row)
            if len(chosen) == self.few_shot:
                return chosen
        raise UserError(
            f"task {self.name!r}: few_shot is {self.few_shot}, but its train split has only {len(chosen)} "
            f"other rows that template {template.name!r} tells apart"
        )

    def _answers(self, row: Row, targets: str) -> list[str]:
        if self.answers_field is None:
            return [targets]
        answers = row.get(self.answers_field)
        if isinstance(answers, str | bytes) or not isinstance(answers, Collection) or not len(answers):
            raise UserError(
                f"task {self.name!r}: answers_field {self.answers_field!r} is {answers!r} in a row"
                f"{'' if self.answers_field in row else nearest(self.answers_field, row)}; "
                "it must name a list of acceptable answers"
            )
        return [str(answer) for answer in answers]


def _hash(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


def _hex(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
