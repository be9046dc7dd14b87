"""The report's tables of scores and its sample predictions, as HTML; seen and unseen templates stay apart.

Everything that comes from a run is escaped here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from t5x_lite.training import charts

SPLITS = ("unseen", "seen")  # in this order everywhere: unseen templates are what a score is worth
STYLES = {"unseen": "c1", "seen": "c2"}
_SAMPLES_OPEN = 12  # so many samples are seen without a click
_SAMPLES_A_SIDE = 3
_NO_SCORE = '<td class="score" data-value=""><small>none</small></td>'


def scores(tasks: Mapping[str, Any], trends: Mapping[str, charts.Points]) -> str:
    """A row a task: its first metric over unseen and seen templates, all examples, and `trends[task]` over steps."""
    tasks = {name: task for name, task in tasks.items() if task["metrics"]}
    if not tasks:
        return note("No evaluation has been written yet.")
    splits = [split for split in SPLITS if any(split in task["summary"] for task in tasks.values())]
    rows = []
    for name, task in tasks.items():
        metric, value = next(iter(task["metrics"].items()))
        about = (words(metric), f", {_count(task['examples'], 'example')}")
        trend = charts.sparkline(f"{name}, {words(metric)}", trends.get(name, ()))
        cells = [_range_cell(task["summary"].get(split, {}).get(metric), split) for split in splits]
        rows.append(
            f"<tr>{_row_head(name, *about)}{''.join(cells)}"
            f'<td class="wide" data-value="{_sortable(value)}">{score(value)}</td><td class="wide">{trend}</td></tr>'
        )
    heads = [_head("Task", "text"), *(_head(f"{split} templates", "number") for split in splits)]
    heads += [_head("All examples", "number", "wide"), '<th scope="col" class="wide">Over training</th>']
    said = (
        "The mean over a task's templates, with the lowest and the highest of them. "
        "Unseen templates are wordings that training never used."
    )
    return note(said) + _table("Scores by task", heads, f'<tbody class="rows">{"".join(rows)}</tbody>', "card")


def templates(tasks: Mapping[str, Any]) -> str:
    """A folded table a task, the first one open."""
    tables = [
        f'<details class="card"{"" if position else " open"}><summary><b>{_breakable(name)}</b>'
        f"<small>{_count(len(task['templates']), 'template')}, {_count(task['examples'], 'example')}</small></summary>"
        f"{_template_table(name, task)}</details>"
        for position, (name, task) in enumerate(tasks.items())
    ]
    return "".join(tables) or note("No evaluation has been written yet.")


def _template_table(name: str, task: Mapping[str, Any]) -> str:
    metrics = list(task["metrics"])
    bodies = []
    for split in SPLITS:
        group = {n: template for n, template in task["templates"].items() if template["split"] == split}
        if not group:
            continue
        summary = task["summary"].get(split, {})
        examples = sum(template["examples"] for template in group.values())
        bodies.append(
            f'<tbody><tr class="group {split}"><th scope="rowgroup">{split.capitalize()} templates'
            f"<small>mean, lowest and highest of {len(group)}</small></th>"
            f'<td class="wide">{examples:,}</td>'
            f"{''.join(_range_cell(summary.get(metric), split) for metric in metrics)}</tr></tbody>"
            f'<tbody class="rows">{"".join(_template_row(n, t, metrics) for n, t in group.items())}</tbody>'
        )
    heads = [
        _head("Template", "text"),
        _head("Examples", "number", "wide"),
        *(_head(words(m), "number") for m in metrics),
    ]
    return _table(f"Templates of {name}", heads, "".join(bodies))


def _template_row(name: str, template: Mapping[str, Any], metrics: Iterable[str]) -> str:
    count = template["examples"]
    cells = (_bar_cell(template["metrics"].get(metric), template["split"]) for metric in metrics)
    return f'<tr>{_row_head(name)}<td class="wide" data-value="{count}">{count:,}</td>{"".join(cells)}</tr>'


def _table(label: str, heads: Iterable[str], bodies: str, style: str = "") -> str:
    return (
        f'<div class="scroll {style}" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f'<caption class="hide">{escape(label)}</caption><thead><tr>{"".join(heads)}</tr></thead>{bodies}'
        "</table></div>"
    )


def _head(label: str, kind: str, style: str = "") -> str:
    label = escape(label[:1].upper() + label[1:])
    return f'<th scope="col" class="{style}" data-kind="{kind}"><button type="button">{label}</button></th>'


def _row_head(name: str, about: str = "", more: str = "") -> str:
    small = f'<small>{escape(about)}<span class="wide">{more}</span></small>' if about else ""
    return f'<th scope="row" data-value="{escape(name)}">{_breakable(name)}{small}</th>'


def _range_cell(summary: Mapping[str, float] | None, split: str) -> str:
    if not summary:
        return _NO_SCORE
    mean, low, high = summary["mean"], summary["min"], summary["max"]
    return (
        f'<td class="score" data-value="{_sortable(mean)}"><b>{score(mean)}</b>'
        f"<small>{score(low)} to {score(high)}</small>"
        f"{charts.range_bar(mean, low, high, _full(high), STYLES[split])}</td>"
    )


def _bar_cell(value: float | None, split: str) -> str:
    if value is None:
        return _NO_SCORE
    drawn = charts.bar(value, _full(value), STYLES[split])
    return f'<td class="score" data-value="{_sortable(value)}">{score(value)}{drawn}</td>'


def samples(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Wrong and right predictions side by side, a folded block a task."""
    if not predictions:
        return note("No predictions have been written yet.")
    by_task: dict[str, list] = {}
    for sample in predictions:
        by_task.setdefault(sample["task"], []).append(sample)
    blocks, shown = [], 0
    for task, group in by_task.items():
        wrong, right = ([s for s in group if s["correct"] == correct][:_SAMPLES_A_SIDE] for correct in (False, True))
        blocks.append(
            f'<details class="card"{" open" if shown < _SAMPLES_OPEN else ""}><summary><b>{_breakable(task)}</b>'
            f"<small>{len(wrong)} wrong, {len(right)} right</small></summary>"
            f'<div class="pair">{_column("wrong", "✗ Wrong", wrong)}{_column("right", "✓ Right", right)}</div>'
            "</details>"
        )
        shown += len(wrong) + len(right)
    said = (
        "A few of each task, wrong ones first and unseen templates before seen; not a fair draw: "
        "the scores above count every example."
    )
    return note(said) + "".join(blocks)


def _column(style: str, title: str, predictions: Sequence[Mapping[str, Any]]) -> str:
    shown = "".join(map(_sample, predictions)) or note("None among the samples.")
    return f'<div class="{style}"><h3>{title}</h3>{shown}</div>'


def _sample(sample: Mapping[str, Any]) -> str:
    split = sample["template_split"]
    return (
        f'<div class="sample"><div class="said" dir="auto">{escape(sample["inputs"])}</div>'
        f'<dl><dt>Answered</dt><dd class="got" dir="auto">{escape(sample["prediction"]) or "<em>nothing</em>"}</dd>'
        f'<dt>Expected</dt><dd dir="auto">{escape(sample["targets"])}</dd></dl>'
        f"<small>template {escape(sample['template'])} "
        f'<span class="tag {STYLES.get(split, "")}">{escape(split)}</span></small></div>'
    )


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _count(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def words(name: str) -> str:
    return name.replace("_", " ")


def _breakable(name: str) -> str:
    """The name, escaped, that a narrow page may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def score(value: float) -> str:
    """Three decimals for what lies in [0, 1]; two for scores that count to 100, like BLEU."""
    if not math.isfinite(value):
        return charts.number(value)
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:,.2f}"


def _sortable(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _full(value: float) -> float:
    """The end of the scale that a score belongs to: 1, 100, or itself where it is larger."""
    return next((full for full in (1.0, 100.0) if not value > full), value)
