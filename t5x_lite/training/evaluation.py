"""Evaluation by generation: the decoder that answers users answers the evaluation sets too.

Every example belongs to one template, seen or unseen in training, and scores are kept apart by it: a model that
answers only the wordings it was trained on must show it. One exact pass: no example is repeated or dropped.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5x_lite import interop
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.data.metrics import normalize_answer
from t5x_lite.data.pipeline import EvalSet, load_eval
from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.trie import build_trie
from t5x_lite.errors import UserError, nearest
from t5x_lite.files import write_whole
from t5x_lite.processes import is_main
from t5x_lite.recommendation import comparison
from t5x_lite.recommendation.recommender import Recommender
from t5x_lite.run_folder import check_folder_of
from t5x_lite.training.report import write_report
from t5x_lite.training.run import Run, TrainConfig, prepare

_SAMPLES_PER_TASK = 6

Scores = dict[str, float]


def load_eval_sets(run: Run, split: str, max_examples: int | None) -> list[EvalSet]:
    """The evaluation sets of the tasks that have the split; UserError where none has it."""
    having = [task for task in run.tasks if split in task.splits]
    if not having:
        splits = sorted({name for task in run.tasks for name in task.splits})
        raise UserError(f"no task of {run.config.mixture_or_task_name!r} has a split {split!r}; splits: {splits}")
    return [load_eval(task, split, run.vocabulary, run.lengths, max_examples) for task in having]


def evaluate_run(
    config: TrainConfig, *, split: str | None, step: int | None, max_examples: int | None
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run folder and renews its eval/results.json and report.html.

    `step` defaults to the best step by the run's metric, else the latest. Raises UserError as `prepare` does, and
    where there is no checkpoint.
    """
    run = prepare(dataclasses.replace(config, cache_dir=None))  # which has no texts, and need not be there any more
    checkpoints = Checkpoints(config.model_dir, best_metric=config.best_metric)
    step = checkpoints.existing_step(checkpoints.preferred_step() if step is None else step)
    # Adapters are folded into their kernels as the source is read.
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, lora=None))
    params = interop.load_model(interop.open_step(config.model_dir, step), run.model, config.partitioner)
    split = split or config.eval_split
    eval_sets = load_eval_sets(run, split, max_examples)
    generator = Generator(run.model, params, eos_id=run.vocabulary.eos_id, partitioner=config.partitioner)
    results = evaluate(run, generator, eval_sets, step=step, split=split)
    if is_main():
        write_results(config.model_dir, results)
        write_report(config.model_dir)
    return results


def check_comparison(config: TrainConfig, split: str | None, lists_file: str | None) -> None:
    """Raises UserError, before minutes are spent, for what `compare_recommenders` cannot do.

    That is a run that does not recommend, a split that is no part of its data, and a file that cannot be written.
    """
    if config.items is None:
        raise UserError("--sasrec and --recs_out are for runs that recommend; this one has ITEMS = None")
    parts, part = ("validation", "test"), split or config.eval_split
    if part not in parts:
        raise UserError(f"--split {part!r}{nearest(part, parts)}; users' held-out items are in {', '.join(parts)}")
    if lists_file:
        check_folder_of("--recs_out", lists_file)


def compare_recommenders(config: TrainConfig, results: dict[str, Any], *, sasrec: bool, lists_file: str | None) -> str:
    """Adds "recommendation" to the results of a run that recommends, and returns the table that compares it."""
    recommender = Recommender.load(config.model_dir, results["step"])
    found = comparison.compare(recommender, config.items, results["split"], sasrec=sasrec)
    # With several processes each of them compares, on its own devices: waiting for one could outlast JAX's patience.
    if is_main():
        write_results(config.model_dir, results | {"recommendation": found.rows})
        if lists_file:
            comparison.write_lists(lists_file, found, config.items)
    return comparison.table(found)


def evaluate(run: Run, generator: Generator, eval_sets: Sequence[EvalSet], step: int, split: str) -> dict[str, Any]:
    """Scores every set; see `summarize` for the shape of what comes back."""
    tasks = {}
    samples: list[dict] = []
    for examples in eval_sets:
        predictions, scores = answer(run, generator, examples)
        likelihoods = target_scores(generator, examples)
        tasks[examples.task.name] = score_task(examples, predictions, scores, likelihoods)
        samples += pick_samples(examples, predictions)
    return {"step": step, "split": split, "tasks": tasks, "overall": overall(tasks), "samples": samples}


def answer(run: Run, generator: Generator, examples: EvalSet) -> tuple[list[Any], list[Any]]:
    """The prediction of each example and its score: a number, or of labels the probability of each."""
    way = answer_with(examples.task)
    if isinstance(way, Labels):
        return choose_labels(run, generator, examples, way)
    if isinstance(way, BestItems):
        return find_items(run, generator, examples, way)
    return predict(run, generator, examples)


def answer_with(task) -> Labels | BestItems | None:
    from t5x_lite.data import registry  # imports TensorFlow

    instructions = registry.instructions_of(task)
    return instructions.answer_with if instructions else None


def choose_labels(
    run: Run, generator: Generator, examples: EvalSet, labels: Labels
) -> tuple[list[str], list[list[float]]]:
    """The likeliest label of each example, and the probability of each label, of which one it must be.

    An example's `prefix` comes before the label. Labels end, or one could be the beginning of another; but where any
    example has a prefix, more follows them in training, and their end is not scored.
    """
    vocabulary, count = run.vocabulary, len(labels.texts)
    written = [vocabulary.encode(text) for text in labels.texts]
    prefixes = [vocabulary.encode(example.get("prefix", "")) for example in examples.examples]
    if not any(prefixes):
        written = [[*label, vocabulary.eos_id] for label in written]
    # Labels are a catalogue of which all are found, so that what they share, inputs and prefixes, is read once.
    every = Decoding(max_tokens=max(map(len, written)), beams=count, n_best=count)
    found = generator.search(examples.inputs, build_trie(written), every, prefixes=prefixes)
    totals = np.array([label.score for labels_of in found for label in sorted(labels_of)]).reshape(-1, count)
    weights = np.exp(totals - totals.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return [labels.texts[row.argmax()] for row in totals], probabilities.tolist()


def find_items(
    run: Run, generator: Generator, examples: EvalSet, best: BestItems
) -> tuple[list[list[str]], list[list[float]]]:
    """The texts of the best items of the run's catalogue for each example, and their log-probabilities."""
    index = run.knowledge.index
    found = generator.search(
        examples.inputs,
        run.trie,
        Decoding(max_tokens=run.lengths["targets"], beams=best.count, n_best=best.count),
        prefixes=[run.vocabulary.encode(example.get("prefix", "")) for example in examples.examples],
        deny=[example.get("denied", ()) for example in examples.examples],
        allow=[example.get("allowed") for example in examples.examples],
    )
    texts = [[index.texts[each.item] for each in items] for items in found]
    return texts, [[each.score for each in items] for items in found]


def predict(run: Run, generator: Generator, examples: EvalSet) -> tuple[list[Any], list[float]]:
    """The postprocessed prediction and the score of each example."""
    generations = [best for (best,) in generator.generate(examples.inputs, Decoding(max_tokens=run.lengths["targets"]))]
    texts = [run.vocabulary.decode(generation.tokens) for generation in generations]
    predictions = [
        examples.task.postprocess_fn(text, example=example, is_target=False)
        for text, example in zip(texts, examples.examples, strict=True)
    ]
    return predictions, [generation.score for generation in generations]


def target_scores(generator: Generator, examples: EvalSet) -> list[float]:
    """The log-likelihood of each example's target, for tasks with a metric of (targets, scores); else nothing."""
    if not examples.task.score_metric_fns:
        return []
    return [sum(scores) for scores in generator.score(examples.inputs, examples.targets)]


def score_task(
    examples: EvalSet, predictions: Sequence[Any], scores: Sequence[Any], likelihoods: Sequence[float]
) -> dict[str, Any]:
    """{"metrics", "examples", "signatures", "templates": {name: {"split", "metrics", "examples"}}, "summary"}.

    `signatures` are what scores of sacrebleu must be quoted with.
    """

    def score(rows: Sequence[int]) -> Scores:
        columns = (examples.answers, predictions, scores, likelihoods)
        return call_metrics(examples.task, *([column[i] for i in rows] if column else [] for column in columns))

    rows_of: dict[str, list[int]] = {}
    for i, template in enumerate(examples.templates):
        rows_of.setdefault(template, []).append(i)
    split_of = dict(zip(examples.templates, examples.template_splits, strict=True))
    templates = {
        name: {"split": split_of[name], "metrics": score(rows), "examples": len(rows)}
        for name, rows in sorted(rows_of.items())
    }
    return {
        "metrics": score(range(len(predictions))),
        "examples": len(predictions),
        "signatures": {m.__name__: m.signature for m in metric_functions(examples.task) if hasattr(m, "signature")},
        "templates": templates,
        "summary": {
            split: summarize([t["metrics"] for t in templates.values() if t["split"] == split])
            for split in ("seen", "unseen")
            if split in split_of.values()
        },
    }


def metric_functions(task) -> list:
    return [*task.predict_metric_fns, *task.predict_with_aux_metric_fns, *task.score_metric_fns]


def call_metrics(task, answers: list, predictions: list, scores: list, likelihoods: list) -> Scores:
    """Runs a task's metric functions, told apart by their parameters as SeqIO does.

    `scores` are those of the predictions and reach `aux_values`; (targets, scores) gets the targets' likelihoods.
    """
    found: Scores = {}
    for metric in task.predict_metric_fns:
        found |= metric(answers, predictions)
    for metric in task.predict_with_aux_metric_fns:
        found |= metric(answers, predictions, {"scores": scores})
    for metric in task.score_metric_fns:
        found |= metric(answers, likelihoods)
    return {name: float(value) for name, value in found.items()}


def summarize(scores: Sequence[Scores]) -> dict[str, Scores]:
    """Mean, least and greatest of each metric over templates."""
    names = dict.fromkeys(name for each in scores for name in each)
    columns = {name: [each[name] for each in scores if name in each] for name in names}
    return {
        name: {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
        for name, values in columns.items()
    }


def overall(tasks: Mapping[str, dict]) -> Scores:
    """`unseen/exact_match`: the mean over tasks of the mean over templates, for each metric and template split."""
    columns: dict[str, list[float]] = {}
    for task in tasks.values():
        for split, metrics in task["summary"].items():
            for metric, values in metrics.items():
                columns.setdefault(f"{split}/{metric}", []).append(values["mean"])
    return {name: float(np.mean(values)) for name, values in sorted(columns.items())}


def flat(results: Mapping[str, Any]) -> Scores:
    """One flat dict for metrics.jsonl: `overall` and `task/metric`."""
    by_task = {f"{name}/{m}": v for name, task in results["tasks"].items() for m, v in task["metrics"].items()}
    return {**results["overall"], **by_task}


def pick_samples(examples: EvalSet, predictions: Sequence[Any]) -> list[dict]:
    """A few wrong and a few right predictions of a task, unseen templates first."""
    accepted = [answers if isinstance(answers, list) else [answers] for answers in examples.answers]
    given = [prediction if isinstance(prediction, list) else [prediction] for prediction in predictions]
    correct = [
        not {normalize_answer(str(each)) for each in one}.isdisjoint(normalize_answer(str(each)) for each in answers)
        for one, answers in zip(given, accepted, strict=True)
    ]
    order = sorted(range(len(predictions)), key=lambda i: (examples.template_splits[i] == "seen", i))
    wrong = [i for i in order if not correct[i]][: _SAMPLES_PER_TASK // 2]
    right = [i for i in order if correct[i]][: _SAMPLES_PER_TASK - len(wrong)]
    return [
        {
            "task": examples.task.name,
            "template": examples.templates[i],
            "template_split": examples.template_splits[i],
            "inputs": examples.texts[i],
            "targets": " | ".join(map(str, accepted[i])),
            "prediction": " | ".join(map(str, given[i])),
            "correct": correct[i],
        }
        for i in wrong + right
    ]


def write_results(run_dir: str, results: Mapping[str, Any]) -> None:
    """eval/results.json, whole or not at all."""
    folder = epath.Path(run_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.json", json.dumps(results, ensure_ascii=False, indent=1).encode())


def table(results: Mapping[str, Any]) -> str:
    """What a person reads on the terminal: a row per task, its metrics, means over seen and unseen templates."""
    lines = [f"{'task':28} {'examples':>8}  {'metric':12} {'all':>6} {'seen':>6} {'unseen':>6}  min..max over unseen"]
    for name, task in results["tasks"].items():
        for row, (metric, value) in enumerate(task["metrics"].items()):
            seen, unseen = (task["summary"].get(split, {}).get(metric) for split in ("seen", "unseen"))
            spread = f"{unseen['min']:.3f}..{unseen['max']:.3f}" if unseen else ""
            lines.append(
                f"{name if row == 0 else '':28} {task['examples'] if row == 0 else '':>8}  {metric:12} {value:6.3f} "
                f"{_mean(seen):>6} {_mean(unseen):>6}  {spread}"
            )
    lines.append("")
    lines += [f"{'overall ' + name:51}{value:6.3f}" for name, value in results["overall"].items()]
    return "\n".join(lines)


def _mean(summary: Scores | None) -> str:
    return f"{summary['mean']:.3f}" if summary else ""
