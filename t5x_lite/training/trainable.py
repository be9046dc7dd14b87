"""Which parameters a run trains. The others are given to the step beside the state: no gradient, no optimizer state,
no copy in the run's checkpoints.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from t5x_lite.errors import UserError, nearest
from t5x_lite.model.names import named, nested

Rules = Sequence[tuple[str, bool]]

ADAPTERS_ONLY: Rules = ((r".*/lora_[ab]", True), (".*", False))


def trained_names(names: Iterable[str], rules: Rules) -> set[str]:
    """The parameters that are trained: the first rule (regex, trained or not) that matches a whole name decides.

    A name that no rule matches is trained. Raises UserError for a rule that is no such pair or takes no parameter, and
    where nothing is left to train.
    """
    names = list(names)
    try:
        patterns = [(re.compile(pattern), trained) for pattern, trained in rules]
        if wrong := [trained for _, trained in patterns if not isinstance(trained, bool)]:
            raise TypeError(f"{wrong[0]!r} is not True or False")
    except (re.error, TypeError, ValueError) as error:
        raise UserError(
            f"TRAINABLE: {error}; it is a list of (regex, True or False), like [('decoder/.*', True), ('.*', False)]"
        ) from None
    used, trained = set(), set()
    for name in names:
        place = next((n for n, (pattern, _) in enumerate(patterns) if pattern.fullmatch(name)), None)
        used.add(place)
        if place is None or patterns[place][1]:
            trained.add(name)
    for place, (pattern, _) in enumerate(patterns):
        if place not in used:
            raise UserError(
                f"TRAINABLE: {pattern.pattern!r} takes no parameter{nearest(pattern.pattern, names)}; "
                "a regex must match a whole name of this model that no earlier rule took"
            )
    if not trained:
        raise UserError("TRAINABLE leaves no parameter to train; give one rule True")
    return trained


def split(params: Any, rules: Rules) -> tuple[Any, Any]:
    """(what is trained, the rest) of a tree of parameters; `join` puts them together again."""
    leaves = named(params)
    trained = trained_names(leaves, rules)
    return (
        nested({name: leaf for name, leaf in leaves.items() if name in trained}),
        nested({name: leaf for name, leaf in leaves.items() if name not in trained}),
    )


def join(trained: Any, frozen: Any) -> Any:
    """The whole tree again."""
    return nested(named(trained) | named(frozen))
