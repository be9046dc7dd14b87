"""Metric functions of tasks. Targets are lists of acceptable answers; scores are in [0, 1], BLEU and chrF in [0, 100].

SeqIO tells metric functions apart by their parameters: (targets, predictions), (targets, scores) and
(targets, predictions, aux_values).
"""

import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Answers = Sequence[str]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    without = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without).split())


def exact_match(targets: Sequence[Answers], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal an acceptable answer after normalisation."""
    hits = [
        normalize_answer(prediction) in map(normalize_answer, answers)
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {"exact_match": _mean(hits)}


def token_f1(targets: Sequence[Answers], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's F1 of the words of prediction and answer, the best over acceptable answers."""
    scores = [
        max(_overlap(normalize_answer(answer).split(), normalize_answer(prediction).split()) for answer in answers)
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {"f1": _mean(scores)}


def classification(labels: Sequence[str]) -> Callable[[Sequence[Answers], Sequence[str]], dict[str, float]]:
    """Accuracy, precision, recall and F1 over classes.

    Of two labels the first is the positive class; of more, precision, recall and F1 are means over classes. A
    prediction that is no label is wrong, and counts against recall but not precision.
    """
    names = [normalize_answer(label) for label in labels]
    positives = names[:1] if len(names) == 2 else names

    def scores(targets: Sequence[Answers], predictions: Sequence[str]) -> dict[str, float]:
        pairs = [
            (normalize_answer(answers[0]), normalize_answer(prediction))
            for answers, prediction in zip(targets, predictions, strict=True)
        ]
        per_class = [_precision_recall_f1(pairs, name) for name in positives]
        precision, recall, f1 = (_mean(column) for column in zip(*per_class, strict=True))
        accuracy = _mean([target == prediction for target, prediction in pairs])
        return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}

    return scores


def bleu(language: str) -> Callable[[Sequence[Answers], Sequence[str]], dict[str, float]]:
    """sacrebleu's BLEU of all examples together, tokenised for a target language (Post 2018).

    Chinese has a tokeniser of its own; Japanese is taken character by character, as its own needs MeCab.
    """
    return _corpus_score("bleu", "BLEU", tokenize={"zh": "zh", "ja": "char"}.get(language, "13a"))


def _corpus_score(
    name: str, kind: str, **settings: str
) -> Callable[[Sequence[Answers], Sequence[str]], dict[str, float]]:
    def score(targets: Sequence[Answers], predictions: Sequence[str]) -> dict[str, float]:
        from sacrebleu import metrics  # a machine that trains from a packed cache need not have it

        metric = getattr(metrics, kind)(**settings)
        if len(targets) != len(predictions):
            raise ValueError(f"{len(targets)} targets and {len(predictions)} predictions")
        if not predictions:
            return {name: 0.0}
        references = list(itertools.zip_longest(*targets))  # all first answers, all second ones ...
        value = metric.corpus_score(predictions, references).score
        score.signature = str(metric.get_signature())  # what a score must be quoted with; it has the references' number
        return {name: value}

    score.__name__ = name
    return score


# sacrebleu's chrF2 of all examples together: F-score of character n-grams, without white space (Popović 2015).
chrf = _corpus_score("chrf", "CHRF")


def _precision_recall_f1(pairs: Sequence[tuple[str, str]], name: str) -> tuple[float, float, float]:
    right = sum(target == prediction == name for target, prediction in pairs)
    predicted = sum(prediction == name for _, prediction in pairs)
    actual = sum(target == name for target, _ in pairs)
    precision = right / predicted if predicted else 0.0
    recall = right / actual if actual else 0.0
    return precision, recall, 2 * right / (predicted + actual) if predicted + actual else 0.0


def _overlap(answer: Sequence[str], prediction: Sequence[str]) -> float:
    if not answer or not prediction:
        return float(answer == prediction)
    common = sum((Counter(answer) & Counter(prediction)).values())
    return 2 * common / (len(answer) + len(prediction))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
