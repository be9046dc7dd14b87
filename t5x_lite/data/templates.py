"""Instruction templates: how a row of data becomes the text that is asked and the text that is answered."""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.errors import UserError, nearest

SPLITS = ("seen", "unseen")

# Between an exemplar's input and its target, and between exemplars.
_ANSWER, _NEXT = "\n", "\n\n"


@dataclasses.dataclass(frozen=True)
class InstructionTemplate:
    """Two texts with `{named}` fields. Wordings of split 'seen' train; 'unseen' ones are only evaluated.

    Raises UserError for an unknown split, a field without a name, and braces that do not match.
    """

    name: str
    inputs: str
    targets: str
    split: str = "seen"

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(
                f"template {self.name!r}: split {self.split!r}{nearest(self.split, SPLITS)}; one of {SPLITS}"
            )
        try:
            unnamed = [name for name in self._names() if not name.isidentifier()]
        except ValueError as error:
            raise UserError(f"template {self.name!r}: {error}; write {{{{ and }}}} for braces that are text") from None
        if unnamed:
            raise UserError(f"template {self.name!r}: field {{{unnamed[0]}}} is no name; write it like {{question}}")

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self._names())

    def render(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The (inputs, targets) of a row; UserError where the row lacks a field."""
        for field in self._names():
            if field not in row:
                raise UserError(
                    f"template {self.name!r}: no field {field!r} in the row{nearest(field, row)}; "
                    f"the row has {', '.join(row)}"
                )
        return self.inputs.format_map(row), self.targets.format_map(row)

    def render_few_shot(self, row: Mapping[str, Any], exemplars: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """As `render`, behind exemplars that show the same wording with its answer."""
        shown = [_ANSWER.join(self.render(exemplar)) for exemplar in exemplars]
        inputs, targets = self.render(row)
        return _NEXT.join([*shown, inputs]), targets

    def _names(self) -> list[str]:
        parts = [*string.Formatter().parse(self.inputs), *string.Formatter().parse(self.targets)]
        return [name for _, name, _, _ in parts if name is not None]
