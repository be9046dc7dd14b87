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
        patterns = [(re.compile(pattern), bool(trained)) for pattern, trained in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(
            f"TRAINABLE: {error}; it is a list of (regex, True or False), like [('decoder/.*', True), ('.*', False)]"
        ) from None
    unused = [pattern for pattern, _ in patterns]
    trained = set()
    for name in names:
        rule = next(((p, decision) for p, decision in patterns if p.fullmatch(name)), None)
        if rule and rule[0] in unused:
            unused.remove(rule[0])
        if rule is None or rule[1]:
            trained.add(name)
    if unused:
        raise UserError(
            f"TRAINABLE: {unused[0].pattern!r} takes no parameter{nearest(unused[0].pattern, names)}; "
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
