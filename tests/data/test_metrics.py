import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.metrics import bleu, chrf, classification, exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a cat, an owl", "cat owl"),
        ("another theme", "another theme"),
        ("U.S.A.", "usa"),
        ("", ""),
    ],
)
def test_normalisation_is_squads(text, normal):
    assert normalize_answer(text) == normal


def test_exact_match_takes_any_answer():
    targets = [["Tokyo"], ["the US", "United States"], ["Lima"]]
    assert exact_match(targets, ["tokyo.", "united states", "Quito"]) == {"exact_match": pytest.approx(2 / 3)}


def test_token_f1_by_hand():
    # 'new york city' and 'york city hall' share two of three words each way: precision = recall = 2/3.
    assert token_f1([["New York City"]], ["York city hall"]) == {"f1": pytest.approx(2 / 3)}
    # Repeated words count as often as both have them: 1 shared, precision 1/2, recall 1.
    assert token_f1([["Paris"]], ["Paris Paris"]) == {"f1": pytest.approx(2 / 3)}
    assert token_f1([["Bonn", "Berlin"]], ["Berlin"]) == {"f1": 1.0}
    assert token_f1([["the"]], [""]) == {"f1": 1.0}  # both are empty once normalised
    assert token_f1([["Paris"]], [""]) == {"f1": 0.0}


def test_binary_scores_are_those_of_the_first_label():
    targets = [["yes"], ["yes"], ["yes"], ["no"], ["no"]]
    scores = classification(("yes", "no"))(targets, ["Yes", "yes", "no", "yes", "maybe"])
    # 2 true positives, 1 false positive, 1 false negative.
    assert scores == pytest.approx({"accuracy": 2 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})


def test_scores_of_three_labels_are_means_over_them():
    scores = classification(("a1", "b1", "c1"))([["a1"], ["b1"], ["c1"]], ["a1", "a1", "c1"])
    # a1: precision 1/2, recall 1, f1 2/3; b1: nothing predicted, all 0; c1: all 1.
    assert scores == pytest.approx({"accuracy": 2 / 3, "precision": 0.5, "recall": 2 / 3, "f1": 5 / 9})


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=8))
def test_scores_are_shares_and_right_answers_score_one(pairs):
    answers, predictions = [[a] for a, _ in pairs], [p for _, p in pairs]
    for metric in (exact_match, token_f1, classification(("yes", "no"))):
        assert all(0.0 <= score <= 1.0 for score in metric(answers, predictions).values())
    if pairs:
        assert exact_match(answers, [a for a, _ in pairs]) == {"exact_match": 1.0}
        assert token_f1(answers, [a for a, _ in pairs]) == {"f1": 1.0}


def test_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples are right; their geometric mean.
    score = bleu("de")([["a b c d e"]], ["a b c d f"])
    assert score == {"bleu": pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)}


def test_chrf_by_hand():
    # Of single characters 1 of 2 is right, of pairs none, longer ones there are not: precision and recall are 1/4.
    assert chrf([["ab"]], ["ac"]) == {"chrf": pytest.approx(25.0)}
    assert chrf([["a b"]], ["ab"]) == {"chrf": pytest.approx(100.0)}  # white space does not count


@pytest.mark.parametrize("metric", [bleu("de"), chrf])
def test_corpus_scores_are_of_all_examples_together_and_take_any_answer(metric):
    targets = [["the cat sat on the mat", "a cat was on a mat"], ["seven words are what is said here"]]
    predictions = ["a cat was on a mat", "seven words are not what is said"]
    (score,) = metric(targets, predictions).values()
    (alone,) = metric(targets[1:], predictions[1:]).values()
    assert alone < score < 100
    (right,) = metric(targets, [targets[0][1], targets[1][0]]).values()
    assert right == pytest.approx(100)


@pytest.mark.parametrize(
    ("language", "tokenizer", "answer", "prediction"),
    [
        ("de", "13a", "5. März 2024, 12 Uhr", "5. März 2024, 12 Uhr"),
        ("zh", "zh", "二〇二四年三月五日", "二〇二四年三月六日"),
        ("ja", "char", "二〇二四年三月五日", "二〇二四年三月六日"),
    ],
)
def test_bleu_cuts_a_language_into_its_own_words_and_says_how(language, tokenizer, answer, prediction):
    metric = bleu(language)
    (score,) = metric([[answer]], [prediction]).values()
    assert score > 50  # as one word it would be 0 or 100
    assert f"|tok:{tokenizer}|" in metric.signature and metric.signature.startswith("nrefs:1|")


def test_chrf_says_how_it_counted():
    chrf([["a", "b"]], ["a"])
    assert chrf.signature.startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


@pytest.mark.parametrize("metric", [bleu("ar"), chrf])
def test_nothing_to_score_scores_nothing(metric):
    assert list(metric([], []).values()) == [0.0]
    assert list(metric([["a"]], [""]).values()) == [0.0]


@pytest.mark.parametrize("metric", [exact_match, bleu("de"), chrf])
def test_lengths_must_agree(metric):
    with pytest.raises(ValueError):
        metric([["a"]], [])
