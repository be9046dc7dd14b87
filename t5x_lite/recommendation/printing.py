"""Recommendations as a person or a program reads them."""

import dataclasses
import json

from t5x_lite.recommendation.recommender import Recommendations


def as_json(found: Recommendations) -> str:
    """One object: items, source, warnings, and whether the list is exact."""
    return json.dumps(dataclasses.asdict(found), ensure_ascii=False)


def as_table(found: Recommendations) -> str:
    """A line for each item, below it the reasons; warnings at the end."""
    width = max((len(each.title) for each in found.items), default=5)
    lines = [f"{'':>3}  {'title':{width}}  {'score':>7}  item"]
    for each in found.items:
        lines.append(f"{each.rank:>3}  {each.title:{width}}  {each.score:7.3f}  {each.item}")
        if each.evidence:
            reasons = "; ".join(f"{reason.title} (+{reason.effect:.2f})" for reason in each.evidence)
            lines.append(f"{'':>5}since {reasons}")
    lines += [f"note: {warning}" for warning in found.warnings]
    return "\n".join(lines)
