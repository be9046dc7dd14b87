"""report.html of a run folder: what was trained, how it went, what the model answers. One file, opens offline."""

import datetime
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

from t5x_lite.model import T5Config
from t5x_lite.training import charts, metrics_log
from t5x_lite.training.progress import duration

_SPLITS = ("unseen", "seen")  # in this order everywhere: unseen templates are what a score is worth
_STYLES = {"unseen": "c1", "seen": "c2"}
_SAMPLES_OPEN = 12  # this many samples can be seen without a click

# What is drawn of training: metric, title, note, options of the chart.
_CURVES = (
    ("loss", "Training loss", "cross-entropy + z-loss per target token", {"log": True}),
    ("accuracy", "Token accuracy", "training batches, target tokens", {"from_zero": True}),
    ("learning_rate", "Learning rate", "", {"from_zero": True}),
    ("grad_norm", "Gradient norm", "before clipping", {"log": True}),
    ("tokens_per_second", "Speed", "tokens a second, padding not counted", {"from_zero": True}),
)


@dataclass(frozen=True)
class Record:
    """What a run folder says of its run; any part may be empty."""

    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    results: dict[str, Any]
    manifest: dict[str, Any]
    macros: dict[str, Any]
    config: str

    @property
    def name(self) -> str:
        return str(
            self.manifest.get("mixture_or_task") or self.macros.get("MIXTURE_OR_TASK_NAME") or "Training run"
        )

    @property
    def tasks(self) -> dict[str, Any]:
        return self.results.get("tasks", {})

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line[name]) for line in self.train if name in line]

    def eval_curve(self, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line[name]) for line in self.evals if name in line]


def write_report(run_dir: str) -> None:
    """Writes report.html from what is in the run folder, whole or not at all; parts that are missing are left out."""
    path = os.path.join(run_dir, "report.html")
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.write(render(read_record(run_dir)))
    os.replace(path + ".tmp", path)


def read_record(run_dir: str) -> Record:
    def text(*names: str) -> str:
        path = os.path.join(run_dir, *names)
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as file:
            return file.read()

    lines = metrics_log.read(run_dir)
    return Record(
        train=[line for line in lines if line["kind"] == "train"],
        evals=[line for line in lines if line["kind"] == "eval"],
        results=json.loads(text("eval", "results.json") or "{}"),
        manifest=json.loads(text("manifest.json") or "{}"),
        macros=json.loads(text("config.json") or "{}").get("macros", {}),
        config=text("config.gin"),
    )


def render(record: Record) -> str:
    """The page. Everything that comes from the run is escaped where it enters HTML."""
    page = Template(
        resources.files("t5x_lite.training").joinpath("report.html.tmpl").read_text(encoding="utf-8")
    )
    written = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    return page.substitute(
        title=escape(f"{record.name}: training report"),
        kicker="Training report, t5x_lite",
        name=escape(record.name),
        lead=escape(_lead(record)),
        tiles=_tiles(record),
        scores=_scores(record),
        curves=_curves(record),
        templates=_templates(record),
        samples=_samples(record.results.get("samples", [])),
        setup=_setup(record),
        configuration=_configuration(record.config),
        footer=f"Written {written} from metrics.jsonl, eval/results.json, manifest.json and config.gin of the run folder.",
    )


# ---------------------------------------------------------------------- headline


def _lead(record: Record) -> str:
    parts = []
    model = record.manifest.get("model")
    if model:
        parts.append(f"T5 with {_millions(_parameters(model))} parameters")
    if record.train:
        step, total = record.train[-1]["step"], record.macros.get("TRAIN_STEPS")
        of = f" of {total:,}" if isinstance(total, int) and total != step else ""
        parts.append(f"{step:,}{of} steps")
    if record.results:
        parts.append(f"evaluated on {record.results['split']!r} at step {record.results['step']:,}")
    return ", ".join(parts) if parts else "Nothing has been logged yet."


def _tiles(record: Record) -> str:
    tiles = []
    overall = record.results.get("overall", {})
    for metric, tasks in _tasks_by_metric(record.tasks).items():
        found = [split for split in _SPLITS if f"{split}/{metric}" in overall]
        if not found:
            continue
        count = f"mean of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0]
        rest = [f"{split} templates {_score(overall[f'{split}/{metric}'])}" for split in found[1:]]
        label = f"{_words(metric)}, {found[0]} templates".capitalize()
        tiles.append((label, _score(overall[f"{found[0]}/{metric}"]), "; ".join([*rest, count]), "main"))
    if loss := record.curve("loss"):
        tiles.append(
            (
                "Training loss",
                charts.number(loss[-1][1]),
                f"{charts.number(loss[0][1])} at step {loss[0][0]:,}",
                "",
            )
        )
    if accuracy := record.curve("accuracy"):
        tiles.append(("Token accuracy", _score(accuracy[-1][1]), "of the newest training batch", ""))
    if speed := [v for _, v in record.curve("tokens_per_second") if math.isfinite(v)]:
        tiles.append(
            (
                "Speed",
                f"{charts.number(_round3(statistics.median(speed)))}",
                "tokens a second, without padding",
                "",
            )
        )
    if seconds := _training_seconds(record.curve("training_seconds")):
        tiles.append(("Training time", duration(seconds), "without compilation and evaluation", ""))
    return "".join(
        f'<div class="card {style}"><dt>{escape(label)}</dt><dd>{escape(value)}</dd><dd>{escape(detail)}</dd></div>'
        for label, value, detail, style in tiles
    )


def _training_seconds(curve: Sequence[tuple[int, float]]) -> float:
    """The clock of training_seconds starts again with every process; the sum of what each one reached."""
    seconds = [v for _, v in curve]
    return sum(v for v, after in zip(seconds, [*seconds[1:], -math.inf], strict=True) if after < v)


def _tasks_by_metric(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the tasks that each metric is the first one of."""
    found: dict[str, list[str]] = {}
    for name, task in tasks.items():
        if task["metrics"]:
            found.setdefault(next(iter(task["metrics"])), []).append(name)
    return found


# ---------------------------------------------------------------------- scores


def _scores(record: Record) -> str:
    if not record.tasks:
        return '<p class="note">No evaluation has been written yet.</p>'
    splits = [s for s in _SPLITS if any(s in task.get("summary", {}) for task in record.tasks.values())]
    rows = []
    for name, task in record.tasks.items():
        metric = next(iter(task["metrics"]), None)
        if metric is None:
            continue
        value = task["metrics"][metric]
        trend = record.eval_curve(f"{name}/{metric}")
        cells = "".join(
            _range_cell(task.get("summary", {}).get(split, {}).get(metric), split) for split in splits
        )
        detail = f"{_words(metric)}, {task['examples']:,} examples"
        rows.append(
            f'<tr><th scope="row" data-value="{escape(name)}">{escape(name)}<small>{escape(detail)}</small></th>{cells}'
            f'<td class="wide" data-value="{_sortable(value)}">{_score(value)}</td>'
            f'<td class="wide">{charts.sparkline(f"{name}, {_words(metric)}", trend)}</td></tr>'
        )
    heads = [_head("Task", "text"), *(_head(f"{split.capitalize()} templates", "number") for split in splits)]
    heads += [_head("All examples", "number", "wide"), '<th scope="col" class="wide">Over training</th>']
    return (
        "<p class=note>The mean over a task's templates, with the lowest and the highest of them. "
        "Unseen templates are wordings that training never used.</p>"
        f"{_table('Scores by task', heads, f'<tbody class=rows>{"".join(rows)}</tbody>')}"
    )


def _templates(record: Record) -> str:
    tables = [
        f'<details class="card"{" open" if position == 0 else ""}><summary><b>{escape(name)}</b>'
        f"<small>{len(task['templates'])} templates, {task['examples']:,} examples</small></summary>"
        f"{_template_table(name, task)}</details>"
        for position, (name, task) in enumerate(record.tasks.items())
        if task.get("templates")
    ]
    return "".join(tables) or '<p class="note">No evaluation has been written yet.</p>'


def _template_table(name: str, task: Mapping[str, Any]) -> str:
    metrics = list(task["metrics"])
    bodies = []
    for split in _SPLITS:
        templates = {n: t for n, t in task["templates"].items() if t["split"] == split}
        if not templates:
            continue
        summary = task.get("summary", {}).get(split, {})
        group = "".join(_range_cell(summary.get(metric), split) for metric in metrics)
        rows = "".join(
            f'<tr><th scope="row" data-value="{escape(n)}">{escape(n)}</th><td data-value="{t["examples"]}">{t["examples"]:,}</td>'
            + "".join(_bar_cell(t["metrics"].get(metric), split) for metric in metrics)
            + "</tr>"
            for n, t in templates.items()
        )
        examples = sum(t["examples"] for t in templates.values())
        bodies.append(
            f'<tbody><tr class="group {split}"><th scope="rowgroup">{split.capitalize()} templates'
            f"<small>mean, lowest and highest of {len(templates)}</small></th><td>{examples:,}</td>{group}</tr></tbody>"
            f'<tbody class="rows">{rows}</tbody>'
        )
    heads = [
        _head("Template", "text"),
        _head("Examples", "number"),
        *(_head(_words(m), "number") for m in metrics),
    ]
    return _table(f"Templates of {name}", heads, "".join(bodies), card=False)


def _table(label: str, heads: Iterable[str], bodies: str, card: bool = True) -> str:
    return (
        f'<div class="scroll{" card" if card else ""}" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f'<caption class="hide">{escape(label)}</caption><thead><tr>{"".join(heads)}</tr></thead>{bodies}</table></div>'
    )


def _head(label: str, kind: str, style: str = "") -> str:
    return (
        f'<th scope="col" class="{style}" data-kind="{kind}">'
        f'<button type="button">{escape(label[:1].upper() + label[1:])}</button></th>'
    )


def _range_cell(summary: Mapping[str, float] | None, split: str) -> str:
    if not summary:
        return '<td class="score" data-value=""><small>none</small></td>'
    mean, low, high = summary["mean"], summary["min"], summary["max"]
    return (
        f'<td class="score" data-value="{_sortable(mean)}"><b>{_score(mean)}</b>'
        f"<small>{_score(low)} to {_score(high)}</small>{charts.range_bar(mean, low, high, _full(high), _STYLES[split])}</td>"
    )


def _bar_cell(value: float | None, split: str) -> str:
    if value is None:
        return '<td class="score" data-value=""><small>none</small></td>'
    return f'<td class="score" data-value="{_sortable(value)}">{_score(value)}{charts.bar(value, _full(value), _STYLES[split])}</td>'


# ---------------------------------------------------------------------- curves


def _curves(record: Record) -> str:
    drawn = []
    for metric in _tasks_by_metric(record.tasks) or _eval_metrics(record.evals):
        named = [(split, record.eval_curve(f"{split}/{metric}")) for split in _SPLITS]
        series = [
            charts.Series(f"{split} templates", points, _STYLES[split]) for split, points in named if points
        ]
        if series:
            title = f"Evaluation: {_words(metric)}"
            drawn.append(charts.line_chart(title, "mean over templates, then tasks", series, from_zero=True))
    for name, title, note, options in _CURVES:
        if points := record.curve(name):
            drawn.append(charts.line_chart(title, note, [charts.Series(_words(name), points)], **options))
    if not drawn:
        return '<p class="note">No metrics have been logged yet.</p>'
    return f'<p class="note">Point at a curve, or focus it and use the arrow keys, to read its values.</p><div class="charts">{"".join(drawn)}</div>'


def _eval_metrics(evals: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of the overall scores, for a run whose eval/results.json is not there."""
    names = (name.split("/", 1) for line in evals for name in line if "/" in name)
    return list(dict.fromkeys(metric for split, metric in names if split in _SPLITS))


# ---------------------------------------------------------------------- samples


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return '<p class="note">No predictions have been written yet.</p>'
    by_task: dict[str, list] = {}
    for sample in samples:
        by_task.setdefault(sample["task"], []).append(sample)
    blocks, shown = [], 0
    for task, group in by_task.items():
        wrong, right = [s for s in group if not s["correct"]], [s for s in group if s["correct"]]
        opened = " open" if shown < _SAMPLES_OPEN else ""
        shown += len(group)
        blocks.append(
            f'<details class="card"{opened}><summary><b>{escape(task)}</b><small>{len(wrong)} wrong, {len(right)} right</small>'
            f'</summary><div class="pair">{_column("wrong", "✗ Wrong", wrong)}{_column("right", "✓ Right", right)}</div></details>'
        )
    note = "A few of each task, chosen by place and not by looks: wrong ones first, unseen templates before seen."
    return f'<p class="note">{note} The numbers above count all examples.</p>{"".join(blocks)}'


def _column(style: str, title: str, samples: Sequence[Mapping[str, Any]]) -> str:
    shown = "".join(_sample(sample) for sample in samples)
    return (
        f'<div class="{style}"><h3>{title}</h3>{shown or "<p class=note>None among the samples.</p>"}</div>'
    )


def _sample(sample: Mapping[str, Any]) -> str:
    split = sample["template_split"]
    prediction = escape(sample["prediction"]) or "<em>(nothing)</em>"
    return (
        f'<div class="sample"><div class="said" dir="auto">{escape(sample["inputs"])}</div>'
        f'<dl><dt>Answered</dt><dd class="got" dir="auto">{prediction}</dd>'
        f'<dt>Expected</dt><dd dir="auto">{escape(sample["targets"])}</dd></dl>'
        f'<small>template {escape(sample["template"])} <span class="tag {_STYLES.get(split, "")}">{escape(split)}</span></small></div>'
    )


# ---------------------------------------------------------------------- model, environment, configuration


def _setup(record: Record) -> str:
    manifest = record.manifest
    model = manifest.get("model", {})
    data = {
        "mixture or task": manifest.get("mixture_or_task"),
        **{f"{name} length": f"{value} tokens" for name, value in manifest.get("lengths", {}).items()},
        **{f"vocabulary {name}": value for name, value in manifest.get("vocabulary", {}).items()},
        "templates sha256": manifest.get("templates_sha256"),
    }
    known = {"format", "model", "lengths", "vocabulary", "templates_sha256", "mixture_or_task", "versions"}
    environment = {**manifest.get("versions", {}), **{k: v for k, v in manifest.items() if k not in known}}
    parameters = {"parameters": f"{_parameters(model):,}"} if model else {}
    cards = [("Model", parameters | model), ("Data and vocabulary", data), ("Environment", environment)]
    shown = [_facts(title, facts) for title, facts in cards if any(v is not None for v in facts.values())]
    if not shown:
        return '<p class="note">The run folder has no manifest.json.</p>'
    return f'<div class="facts">{"".join(shown)}</div>'


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(_words(name))}</dt><dd>{escape(_fact(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<section class="card"><h3>{title}</h3><dl>{rows}</dl></section>'


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _configuration(config: str) -> str:
    if not config:
        return '<p class="note">The run folder has no config.gin.</p>'
    lines = [
        f"<i>{escape(line)}</i>" if line.startswith("#") else escape(line) for line in config.splitlines()
    ]
    return (
        "<p class=note>Everything gin bound, defaults included; this file alone makes the run again.</p>"
        f'<details class="card"><summary><b>config.gin</b><small>{len(lines)} lines</small></summary>'
        f'<pre tabindex="0" aria-label="config.gin">{chr(10).join(lines)}</pre></details>'
    )


# ---------------------------------------------------------------------- words and numbers


def _parameters(model: Mapping[str, Any]) -> int:
    return T5Config(**{**model, "activations": tuple(model["activations"])}).num_parameters


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _round3(value: float) -> float:
    return float(f"{value:.3g}")


def _score(value: float) -> str:
    """Three decimals for what lies in [0, 1], as everywhere else; two for scores that count to 100, like BLEU."""
    if not math.isfinite(value):
        return charts.number(value)
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:,.2f}"


def _sortable(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _full(value: float) -> float:
    """The end of the scale that a score belongs to: 1, 100, or itself where it is larger."""
    return next((full for full in (1.0, 100.0) if not value > full), value)
