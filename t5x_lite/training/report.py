"""report.html of a run folder: what was trained, how it went, what the model answers. One file for any browser."""

import datetime
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

from etils import epath

from t5x_lite.files import write_whole
from t5x_lite.model import T5Config
from t5x_lite.training import charts, goodput, metrics_log
from t5x_lite.training.progress import duration
from t5x_lite.training.report_tables import SPLITS, STYLES, note, samples, score, scores, templates, words

# What is drawn of training: metric, title, note, whether it is noise to the eye, options of the chart.
_CURVES = (
    ("loss", "Training loss", "cross-entropy + z-loss a target token", True, {"log": True}),
    ("accuracy", "Token accuracy", "target tokens of training batches", True, {"from_zero": True}),
    ("learning_rate", "Learning rate", "as scheduled", False, {"from_zero": True}),
    ("grad_norm", "Gradient norm", "before clipping", True, {"log": True}),
    ("tokens_per_second", "Speed", "tokens a second, padding not counted", True, {"from_zero": True}),
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
        return self.manifest.get("mixture_or_task") or self.macros.get("MIXTURE_OR_TASK_NAME") or "Training run"

    @property
    def tasks(self) -> dict[str, Any]:
        return self.results.get("tasks", {})

    @property
    def tasks_by_metric(self) -> dict[str, list[str]]:
        """The names of the tasks that each metric is the first one of."""
        found: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            for metric in list(task["metrics"])[:1]:
                found.setdefault(metric, []).append(name)
        return found

    def curve(self, name: str) -> list[tuple[int, float]]:
        return _curve(self.train, name)


def write_report(run_dir: str) -> None:
    """Writes report.html from what the run folder holds, whole or not at all; says so where a part is missing."""
    write_whole(epath.Path(run_dir) / "report.html", render(read_record(run_dir)).encode())


def read_record(run_dir: str) -> Record:
    def text(*names: str) -> str:
        path = epath.Path(run_dir).joinpath(*names)
        return path.read_bytes().decode() if path.exists() else ""

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
    """The page, as HTML. Everything that comes from the run is escaped."""
    page = resources.files("t5x_lite.training").joinpath("report.html.tmpl").read_text(encoding="utf-8")
    trends = {
        task: _curve(record.evals, f"{task}/{metric}")
        for metric, names in record.tasks_by_metric.items()
        for task in names
    }
    return Template(page).substitute(
        name=escape(record.name),
        lead=escape(_lead(record)),
        tiles="".join(_tiles(record)),
        scores=scores(record.tasks, trends),
        curves=_curves(record),
        templates=templates(record.tasks),
        samples=samples(record.results.get("samples", [])),
        setup=_setup(record.manifest),
        configuration=_configuration(record.config),
        written=datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


# ---------------------------------------------------------------------- headline


def _lead(record: Record) -> str:
    parts = []
    if model := record.manifest.get("model"):
        count = _parameters(model)
        size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        parts.append(f"T5 with {size} parameters")
    if record.train:
        step, total = record.train[-1]["step"], record.macros.get("TRAIN_STEPS")
        of = f" of {total:,}" if isinstance(total, int) and total != step else ""
        parts.append(f"trained for {step:,}{of} steps")
    if record.results:
        parts.append(f"evaluated on {record.results['split']} at step {record.results['step']:,}")
    text = ", ".join(parts) or "nothing has been logged yet"
    return text[0].upper() + text[1:]


def _tiles(record: Record) -> list[str]:
    tiles = []
    overall = record.results.get("overall", {})
    for metric, tasks in record.tasks_by_metric.items():
        found = [(split, overall[f"{split}/{metric}"]) for split in SPLITS if f"{split}/{metric}" in overall]
        for split, value in found[:1]:
            about = [f"{split} templates", *(f"{other} {score(v)}" for other, v in found[1:])]
            about.append(f"mean of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0])
            tiles.append(_tile(words(metric), score(value), ", ".join(about), "main"))
    if loss := record.curve("loss"):
        first, last = loss[0], loss[-1]
        since = f"{charts.number(first[1], 3)} at step {first[0]:,}" if len(loss) > 1 else f"at step {last[0]:,}"
        tiles.append(_tile("training loss", charts.number(last[1], 3), since))
    if accuracy := record.curve("accuracy"):
        tiles.append(_tile("token accuracy", score(accuracy[-1][1]), "of the newest training batch"))
    if speeds := [value for _, value in record.curve("tokens_per_second") if math.isfinite(value)]:
        speed = float(f"{statistics.median(speeds):.3g}")
        tiles.append(_tile("tokens a second", charts.number(speed), "median, padding not counted"))
    if record.curve("mfu"):
        all_of_it, real = (statistics.median(value for _, value in record.curve(name)) for name in ("mfu", "mfu_real"))
        peak = charts.number(record.train[-1]["peak_flops"] / 1e12, 3)
        tiles.append(_tile("MFU", f"{all_of_it:.1%}", f"median, of {peak} TFLOP/s; real tokens {real:.1%}"))
    if seconds := _training_seconds(record.curve("training_seconds")):
        tiles.append(_tile("training time", duration(seconds), "without compiling and evaluating"))
    if record.train and "goodput" in record.train[-1]:
        about = goodput.describe(record.train[-1]).partition(": ")[2]
        tiles.append(_tile("goodput", f"{record.train[-1]['goodput']:.0%}", about))
    return tiles


def _tile(label: str, value: str, detail: str, style: str = "") -> str:
    label = label[:1].upper() + label[1:]
    return f'<div class="card {style}"><dt>{escape(label)}</dt><dd>{escape(value)}</dd><dd>{escape(detail)}</dd></div>'


def _training_seconds(curve: charts.Points) -> float:
    """The clock of training_seconds starts again with every process: so this adds up what each one reached."""
    total = before = 0.0
    for _, seconds in curve:
        total += seconds - before if seconds >= before else seconds
        before = seconds
    return total


# ---------------------------------------------------------------------- curves


def _curves(record: Record) -> str:
    drawn = []
    for metric in record.tasks_by_metric or _metrics_of(record.evals):
        named = [(split, _curve(record.evals, f"{split}/{metric}")) for split in SPLITS]
        series = [charts.Series(f"{split} templates", points, STYLES[split]) for split, points in named if points]
        if series:
            title = words(metric).capitalize()
            drawn.append(charts.line_chart(title, "evaluation, mean over templates", series, from_zero=True))
    for name, title, about, noisy, options in _CURVES:
        if points := record.curve(name):
            drawn.append(charts.line_chart(title, about, [charts.Series(words(name), points, noisy=noisy)], **options))
    used = [("all positions", record.curve("mfu"), "c1"), ("real tokens", record.curve("mfu_real"), "c2")]
    if used[0][1]:
        series = [charts.Series(*each, noisy=True) for each in used]
        about = "model FLOPs a second as a share of the devices' peak"
        drawn.append(charts.line_chart("MFU", about, series, from_zero=True))
    held = [
        ("in use", record.curve("memory/bytes"), "c1"),
        ("most so far", record.curve("memory/peak_bytes"), "c2"),
    ]
    if held[0][1]:
        series = [charts.Series(name, [(step, size / 1e9) for step, size in curve], c) for name, curve, c in held]
        about = "GB of the fullest device of the first process, or of that process on a CPU"
        drawn.append(charts.line_chart("Memory", about, series, from_zero=True))
    if not drawn:
        return note("No metrics have been logged yet.")
    hint = note("Point at a curve, or focus it and press the arrow keys, to read its values.")
    return f'{hint}<div class="charts">{"".join(drawn)}</div>'


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if name in line]


def _metrics_of(evals: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of the overall scores, for a run folder without eval/results.json."""
    names = (name.partition("/") for line in evals for name in line)
    return list(dict.fromkeys(metric for split, _, metric in names if split in SPLITS and metric))


# ---------------------------------------------------------------------- model, environment, configuration


def _setup(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "format"}
    model = rest.pop("model", {})
    data = {
        "mixture or task": rest.pop("mixture_or_task", None),
        **{f"{name} length": f"{value:,} tokens" for name, value in rest.pop("lengths", {}).items()},
        **{f"vocabulary {name}": value for name, value in rest.pop("vocabulary", {}).items()},
        "templates sha256": rest.pop("templates_sha256", None),
    }
    parameters = {"parameters": _parameters(model)} if model else {}
    cards = {
        "Model": parameters | model,
        "Data and vocabulary": data,
        "Environment": rest.pop("versions", {}) | rest,
    }
    shown = "".join(_facts(title, facts) for title, facts in cards.items())
    return f'<div class="facts">{shown}</div>' if shown else note("The run folder has no manifest.json.")


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_fact(value))}</dd>" for name, value in facts.items() if value is not None
    )
    return f'<section class="card"><h3>{title}</h3><dl>{rows}</dl></section>' if rows else ""


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parameters(model: Mapping[str, Any]) -> int:
    return T5Config(**{**model, "activations": tuple(model["activations"])}).num_parameters


def _configuration(config: str) -> str:
    if not config:
        return note("The run folder has no config.gin.")
    lines = [f"<i>{escape(line)}</i>" if line.startswith("#") else escape(line) for line in config.splitlines()]
    return (
        note("Everything that gin bound, defaults included. This file alone makes the run again.")
        + f'<details class="card"><summary><b>config.gin</b><small>{len(lines)} lines</small></summary>'
        + '<pre tabindex="0" role="region" aria-label="config.gin">{}</pre></details>'.format("\n".join(lines))
    )
