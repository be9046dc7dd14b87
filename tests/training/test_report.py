import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest

from t5x_lite.model import T5Config
from t5x_lite.training import charts, goodput
from t5x_lite.training.report import read_record, write_report
from t5x_lite.training.report_tables import score

VOID = {"meta", "link", "br", "wbr", "circle", "line", "rect", "polyline"}
EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, classes of the elements around it), and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open, self.unclosed = [], [], [], []
        self.feed(text)
        self.unclosed += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(filter(None, self.texts))

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def scored(split, exact_match):
    return {"split": split, "metrics": {"exact_match": exact_match, "f1": 1.0}, "examples": 10}


def spread(mean, low, high):
    return {"exact_match": {"mean": mean, "min": low, "max": high}, "f1": {"mean": 1.0, "min": 1.0, "max": 1.0}}


def sample(task="qa_capital", correct=False, **parts):
    made = {
        "task": task,
        "template": "what_is",
        "template_split": "unseen",
        "inputs": "What is the capital of Japan?",
        "targets": "Tokyo",
        "prediction": "Tokyo" if correct else "Kyoto",
        "correct": correct,
    }
    return made | parts


RESULTS = {
    "step": 200,
    "split": "validation",
    "tasks": {
        "qa_capital": {
            "metrics": {"exact_match": 0.8, "f1": 1.0},
            "examples": 40,
            "templates": {
                "short": scored("seen", 1.0),
                "long": scored("seen", 0.9),
                "what_is": scored("unseen", 0.5),
                "tell_me": scored("unseen", 0.7),
            },
            "summary": {"seen": spread(0.95, 0.9, 1.0), "unseen": spread(0.6, 0.5, 0.7)},
        },
    },
    "overall": {"seen/exact_match": 0.95, "unseen/exact_match": 0.6, "seen/f1": 1.0, "unseen/f1": 1.0},
    "samples": [sample(), sample(correct=True)],
}
MODEL = T5Config(vocab_size=256, d_model=16, num_heads=2, d_ff=32, num_encoder_layers=1, num_decoder_layers=1)
MANIFEST = {
    "format": 1,
    "mixture_or_task": "qa",
    "model": dataclasses.asdict(MODEL),
    "lengths": {"inputs": 64, "targets": 16},
    "vocabulary": {"kind": "trained", "sha256": "abc123", "size": 250},
    "templates_sha256": "def456",
    "versions": {"jax": "0.10.1", "python": "3.11.7"},
    "git": None,
}


def train_line(step, loss):
    return {
        "step": step,
        "kind": "train",
        "loss": loss,
        "accuracy": 0.5,
        "learning_rate": 0.01,
        "grad_norm": 1.0,
        "tokens_per_second": 1000.0,
        "training_seconds": step * 0.5,
    }


METRICS = [
    train_line(100, 2.0),
    {"step": 100, "kind": "eval", "seen/exact_match": 0.5, "unseen/exact_match": 0.25, "qa_capital/exact_match": 0.4},
    train_line(200, 0.5),
    {"step": 200, "kind": "eval", "seen/exact_match": 0.95, "unseen/exact_match": 0.6, "qa_capital/exact_match": 0.8},
]


@pytest.fixture
def run(tmp_path):
    """Writes a run folder and its report; a part given as None is left out. Returns the page and its source."""

    def make(metrics=METRICS, results=RESULTS, manifest=MANIFEST, config="# Macros:\nTRAIN_STEPS = 200\n", macros=None):
        (tmp_path / "eval").mkdir()
        files = {
            "metrics.jsonl": metrics and "".join(json.dumps(line) + "\n" for line in metrics),
            "eval/results.json": results and json.dumps(results),
            "manifest.json": manifest and json.dumps(manifest),
            "config.gin": config,
            "config.json": macros and json.dumps({"macros": macros}),
        }
        for name, text in files.items():
            if text is not None:
                (tmp_path / name).write_text(text, encoding="utf-8")
        write_report(str(tmp_path))
        source = (tmp_path / "report.html").read_text(encoding="utf-8")
        page = Page(source)
        assert page.unclosed == []
        return page, source

    return make


def titles(page):
    """The titles of the charts, which their pictures' text alternatives begin with."""
    return [svg["aria-label"].split(" over training")[0] for svg in page.all("svg", role="img", tabindex="0")]


def test_headline_has_the_main_numbers(run):
    page, _ = run()
    assert page.text.startswith("qa: training report Training report, t5x_lite qa T5 with ")
    assert "trained for 200 steps, evaluated on validation at step 200" in page.text
    for tile in (
        "Exact match 0.600 unseen templates, seen 0.950, qa_capital",
        "Training loss 0.500 2 at step 100",
        "Token accuracy 0.500",
        "Tokens a second 1,000",
        "Training time 1:40",
    ):
        assert tile in page.text


def test_says_how_far_a_run_that_was_stopped_came(run):
    page, _ = run(macros={"TRAIN_STEPS": 1000})
    assert "trained for 200 of 1,000 steps" in page.text


def test_training_time_adds_up_the_processes_of_a_resumed_run(run):
    seconds = [10.0, 20.0, 5.0, 15.0]  # stopped after 20 seconds, then 15 more
    page, _ = run(metrics=[train_line(step, 1.0) | {"training_seconds": s} for step, s in enumerate(seconds)])
    assert "Training time 0:35" in page.text


def test_says_what_share_of_the_peak_was_used(run):
    used = {"mfu": 0.5, "mfu_real": 0.25, "peak_flops": 3e11}
    page, _ = run(metrics=[train_line(step, 1.0) | used for step in (100, 200)])
    assert "MFU 50.0% median, of 0.300 TFLOP/s; real tokens 25.0%" in page.text
    assert "MFU" in titles(page)


def test_draws_the_memory_over_the_steps(run):
    page, _ = run(metrics=[train_line(100, 1.0) | {"memory/bytes": 2 * 10**9, "memory/peak_bytes": 3 * 10**9}])
    assert "Memory" in titles(page)
    assert "GB of the fullest device" in page.text


def test_shows_where_all_of_the_time_went(run):
    spent = dict.fromkeys(goodput.NAMES, 0.0) | {"productive": 75.0, "startup": 20.0, "gap": 5.0}
    fields = {"goodput": 0.75, **{f"goodput/{kind}_seconds": seconds for kind, seconds in spent.items()}}
    page, _ = run(metrics=[train_line(1, 1.0) | fields])
    assert "Goodput 75% 75% of 1:40 went to steps that count; start and compilation 20%, between two" in page.text


def test_draws_the_curves(run):
    page, _ = run()
    assert titles(page) == ["Exact match", "Training loss", "Token accuracy", "Learning rate", "Gradient norm", "Speed"]
    hover = json.loads(page.all("figure")[0]["data-hover"])
    assert [[series["name"], [point[3] for point in series["points"]]] for series in hover] == [
        ["unseen templates", ["0.2500", "0.6000"]],
        ["seen templates", ["0.5000", "0.9500"]],
    ]
    assert "qa_capital, exact match from 0.4000 at step 100 to 0.8000 at step 200" in [
        svg.get("aria-label") for svg in page.all("svg")
    ]


def test_tables_keep_seen_and_unseen_apart_with_mean_lowest_and_highest(run):
    page, source = run()
    assert "0.600 0.500 to 0.700" in page.text and "0.950 0.900 to 1.000" in page.text
    table = source[source.index('aria-label="Templates of qa_capital"') :]
    table = table[: table.index("</table>")]
    unseen, seen = re.findall(r'<tbody class="rows">(.*?)</tbody>', table)
    assert re.findall(r'<th scope="row" data-value="(.*?)"', unseen) == ["what_is", "tell_me"]
    assert re.findall(r'<th scope="row" data-value="(.*?)"', seen) == ["short", "long"]
    # Columns sort by what their cells say they are worth.
    assert re.findall(r'<td class="score" data-value="(.*?)"', unseen) == ["0.5", "1.0", "0.7", "1.0"]
    assert len(re.findall('<th scope="col".*?<button type="button">', table)) == 4


def test_samples_stand_side_by_side(run):
    page, source = run(results=RESULTS | {"samples": [sample(), sample(correct=True), sample("qa_currency")]})
    pair = re.search(
        r'<div class="pair"><div class="wrong">(.*?)</div></div><div class="right">(.*?)</details>', source, re.S
    )
    assert "Kyoto" in pair[1] and "Tokyo</dd></dl>" in pair[1]
    assert "Kyoto" not in pair[2] and '<dd class="got" dir="auto">Tokyo</dd>' in pair[2]
    assert "qa_ currency 1 wrong, 0 right" in page.text and "None among the samples." in page.text


def test_an_empty_prediction_is_said_to_be_empty(run):
    page, _ = run(results=RESULTS | {"samples": [sample(prediction="")]})
    assert "Answered nothing Expected Tokyo" in page.text


def test_model_environment_and_configuration(run):
    page, source = run()
    for fact in (f"parameters {MODEL.num_parameters:,}", "activations gelu, linear", "d_model 16", "scan_layers no"):
        assert fact in page.text
    for fact in ("inputs length 64 tokens", "vocabulary size 250", "templates sha256 def456", "jax 0.10.1"):
        assert fact in page.text
    assert "<i># Macros:</i>\nTRAIN_STEPS = 200</pre>" in source


def test_everything_of_the_run_is_escaped(run):
    evil_task = {EVIL: RESULTS["tasks"]["qa_capital"] | {"templates": {EVIL: scored("seen", 1.0)}}}
    evil_sample = dict.fromkeys(("task", "template", "template_split", "inputs", "targets", "prediction"), EVIL)
    results = RESULTS | {"split": EVIL, "tasks": evil_task, "samples": [evil_sample | {"correct": False}]}
    manifest = MANIFEST | {"mixture_or_task": EVIL, "versions": {EVIL: EVIL}, "vocabulary": {EVIL: EVIL}}
    page, source = run(results=results, manifest=manifest, config=f"# {EVIL}\nNAME = '{EVIL}'")
    assert source.count("<script") == 1 and "alert('x')" not in source
    assert page.text.count(EVIL) >= 14
    assert not [name for _, attributes in page.elements for name in attributes if "alert" in name or name == "quoted"]


def test_metric_names_are_escaped(run):
    lines = [{"step": 1, "kind": "eval", f"seen/{EVIL}": 0.5}]
    page, source = run(metrics=lines, results=None)
    assert source.count("<script") == 1
    assert titles(page) == [EVIL.capitalize()]


def test_loads_nothing(run):
    page, source = run(results=RESULTS | {"samples": [sample(inputs="see http://example.org/a.png")]})
    for tag, attributes in page.elements:
        assert "src" not in attributes and "srcset" not in attributes and "action" not in attributes, tag
        assert re.match(r"#|data:,$", attributes.get("href", "#")), tag
    code = "".join(re.findall(r"<style>.*?</style>|<script>.*?</script>", source, re.S))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|import\(", code)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_is_accessible(run):
    page, _ = run()
    assert page.all("html", lang="en") and page.all("meta", name="viewport")
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} == set(ids)
    assert {section["aria-labelledby"] for section in page.all("section") if "aria-labelledby" in section} == set(ids)
    assert len(page.all("h1")) == 1
    assert all("scope" in th for th in page.all("th"))


PARTS = ("metrics", "results", "manifest", "config")


@pytest.mark.parametrize("missing", [*((part,) for part in PARTS), PARTS], ids=" ".join)
def test_works_with_missing_parts(run, missing):
    page, _ = run(**dict.fromkeys(missing))
    said = {
        "metrics": "No metrics have been logged yet.",
        "results": "No evaluation has been written yet.",
        "manifest": "The run folder has no manifest.json.",
        "config": "The run folder has no config.gin.",
    }
    assert {part for part in PARTS if said[part] in page.text} == set(missing)
    assert ("Training run Nothing has been logged yet Scores" in page.text) == (missing == PARTS)


def test_evaluation_curves_do_not_need_the_results(run):
    page, _ = run(results=None)
    assert titles(page)[0] == "Exact match"


def test_a_single_point_and_no_number(run):
    page, source = run(metrics=[train_line(1, math.nan) | {"grad_norm": math.inf, "training_seconds": 0.0}])
    assert "Training loss NaN at step 1" in page.text
    assert "nan" not in re.sub("<script>.*", "", source, flags=re.S).replace("NaN", "")
    hover = [json.loads(figure["data-hover"])[0]["points"] for figure in page.all("figure")]
    assert hover[0] == [[218.0, None, "1", "NaN"]]


def test_a_score_that_is_no_number(run):
    task = RESULTS["tasks"]["qa_capital"]
    nan = {"exact_match": math.nan}
    broken = task | {
        "metrics": nan,
        "templates": {"t": {"split": "seen", "metrics": nan, "examples": 0}},
        "summary": {},
    }
    page, _ = run(results=RESULTS | {"tasks": {"broken": broken}, "overall": {}})
    assert "broken exact match , 40 examples NaN" in page.text


def test_a_task_without_templates_of_ours_and_a_score_of_100(run):
    bleu = {"bleu": 31.25}
    task = {
        "metrics": bleu,
        "examples": 1,
        "templates": {"mt": {"split": "seen", "metrics": bleu, "examples": 1}},
        "summary": {"seen": {"bleu": {"mean": 31.25, "min": 31.25, "max": 31.25}}},
    }
    page, source = run(results=RESULTS | {"tasks": {"mt": task}, "overall": {"seen/bleu": 31.25}, "samples": []})
    assert "Bleu 31.25 seen templates, mt" in page.text
    assert "1 template, 1 example" in page.text
    assert ">Seen templates</button>" in source and ">Unseen templates</button>" not in source
    assert "No predictions have been written yet." in page.text


def test_a_report_is_whole_or_not_there(run, tmp_path, monkeypatch):
    _, source = run()
    monkeypatch.setattr(charts, "line_chart", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(str(tmp_path))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == source


def test_read_record_tells_kinds_apart(run, tmp_path):
    run()
    record = read_record(str(tmp_path))
    assert [line["step"] for line in record.train] == [100, 200] == [line["step"] for line in record.evals]
    assert record.curve("loss") == [(100, 2.0), (200, 0.5)]


@pytest.mark.parametrize(
    ("value", "text"), [(0.9641, "0.964"), (1.0, "1.000"), (31.254, "31.25"), (math.nan, "NaN"), (-1234.5, "-1,234.50")]
)
def test_score(value, text):
    assert score(value) == text
