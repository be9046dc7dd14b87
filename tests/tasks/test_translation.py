"""Rows, wordings and registration of the translation tasks; WMT's too, on mocked sets."""

import importlib.util
import re
import unicodedata
from pathlib import Path

import pytest
import seqio
import tensorflow_datasets as tfds

from t5x_lite.data import registry, vocabularies
from t5x_lite.errors import UserError
from tasks import cldr, instruct, translation, wmt  # noqa: F401 (instruct registers its mixture)
from tasks import translation_wordings as wordings

DIRECTIONS = translation.DIRECTIONS
names_of = "-".join


def by_split(templates, split):
    return [template for template in templates if template.split == split]


# Wordings


def test_there_are_twelve_languages_both_ways():
    assert len(DIRECTIONS) == len(set(DIRECTIONS)) == 24
    assert {language for pair in DIRECTIONS for language in pair} == set(cldr.LANGUAGES)
    assert all("en" in pair for pair in DIRECTIONS)


@pytest.mark.parametrize("direction", DIRECTIONS, ids=names_of)
def test_enough_wordings_all_different_that_name_the_language_asked_for(direction):
    templates = wordings.wordings(*direction)
    target = wordings.language_name(direction[1])
    paired = wordings.PHRASES[direction[0] if direction[1] == "en" else direction[1]]
    into, in_ = paired.english if direction[1] == "en" else paired.native
    assert len(by_split(templates, "seen")) >= 8 and len(by_split(templates, "unseen")) >= 3
    assert len({template.inputs for template in templates}) == len({template.name for template in templates})
    for template in templates:
        assert template.fields == {"text", "translation"} and template.targets == "{translation}"
        named = [target] if template.name in wordings.SEEN | wordings.UNSEEN else [into, in_]
        assert any(name.casefold() in template.inputs.casefold() for name in named), template.inputs


@pytest.mark.parametrize(
    ("direction", "inputs"),
    [
        (("en", "de"), "Translate to German: {text}"),
        (("en", "de"), "translate English to German: {text}"),
        (("de", "en"), "translate German to English: {text}"),
        (("en", "de"), "How do you say '{text}' in German?"),
        (("en", "zh"), "用中文说：{text}"),
        (("zh", "en"), "用英文说：{text}"),
        (("en", "de"), "Auf Deutsch: {text}"),
        (("en", "fr"), "En français : {text}"),
        (("fr", "en"), "Comment dit-on « {text} » en anglais ?"),
        (("en", "ar"), "بالعربية: {text}"),
    ],
)
def test_these_ways_to_ask_are_trained(direction, inputs):
    assert inputs in [template.inputs for template in by_split(wordings.wordings(*direction), "seen")]


@pytest.mark.parametrize("direction", DIRECTIONS, ids=names_of)
def test_unseen_wordings_use_words_that_are_trained(direction):
    """A model trained from nothing cannot know a word it never saw; of Chinese and Japanese, a character."""

    def words(split):
        text = " ".join(template.inputs for template in by_split(wordings.wordings(*direction), split))
        return set(re.findall(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+|[^\w\s]", text.casefold()))

    assert words("unseen") <= words("seen"), words("unseen") - words("seen")


# Rows


@pytest.fixture(scope="module")
def all_rows():
    return {
        (*direction, part): list(translation.rows(*direction, part))
        for direction in DIRECTIONS
        for part in translation.VALUES
    }


def test_held_out_texts_are_in_no_train_split(all_rows):
    for source, target in DIRECTIONS:
        trained = {row["text"] for row in all_rows[source, target, "train"]}
        held_out = [row["text"] for part in ("validation", "test") for row in all_rows[source, target, part]]
        assert len(held_out) > 200 and not trained & set(held_out)


def test_an_english_text_held_out_in_one_direction_is_trained_in_none(all_rows):
    """Of full dates, which are read the same everywhere."""
    dates = {"train": set(), "validation": set(), "test": set()}
    for (source, _, part), rows in all_rows.items():
        english = [row["text" if source == "en" else "translation"] for row in rows]
        dates[part] |= {
            match for text in english for match in re.findall(r"[A-Z][a-z]+day, [A-Z][a-z]+ \d+, \d{4}", text)
        }
    assert min(map(len, dates.values())) > 50
    assert not dates["train"] & (dates["validation"] | dates["test"])


def test_a_text_has_one_translation_and_all_are_nfc(all_rows):
    for rows in all_rows.values():
        assert len({row["text"] for row in rows}) == len(rows)
        for row in rows:
            assert row["text"] and row["translation"]
            assert unicodedata.is_normalized("NFC", row["text"] + row["translation"])


def test_the_first_of_two_styles_that_read_the_same_is_meant():
    """German long and short months of March are one; English has two."""
    english = {row["text"]: row["translation"] for row in translation.rows("de", "en", "train")}
    both_ways = {row["text"]: row["translation"] for row in translation.rows("en", "de", "train")}
    march = [text for text in english if re.fullmatch(r"März \d{4}", text)]
    assert march and all(english[text].startswith("March ") for text in march)
    assert {both_ways[text] for text in both_ways if re.fullmatch(r"Mar \d{4}", text)} <= set(march)


@pytest.mark.parametrize("direction", [("en", "ja"), ("ru", "en")], ids=names_of)
def test_every_name_is_trained(all_rows, direction):
    trained = {row["text"]: row["translation"] for row in all_rows[*direction, "train"]}
    for name in (name for sort in cldr.SORTS for name in cldr.names(sort)):
        text, translated = (cldr.name_in(name, cldr.locale(language)) for language in direction)
        assert trained[text] == translated


def test_languages_are_paired_with_other_values():
    german, french = ({english for english, _ in translation.composed(each, "train")} for each in ("de", "fr"))
    assert len(german & french) < 0.3 * len(german)


def test_rows_are_the_same_when_made_again(all_rows):
    made = all_rows["en", "pl", "validation"]
    translation.composed.cache_clear()
    assert list(translation.rows("en", "pl", "validation")) == made


def test_text_comes_back_from_a_trained_vocabulary(all_rows, tmp_path, monkeypatch):
    """Every kind of space, full-width punctuation, right-to-left marks, small raised digits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    languages = ("fr", "zh", "ja", "ar")
    texts = {
        part: [row["translation"] for each in languages for row in all_rows["en", each, part]]
        for part in translation.VALUES
    }
    assert {"\u202f", "\u00a0", "：", "（", "￥", "～", "\u200f", "²"} <= set("".join(texts["train"]))
    vocabulary = vocabularies.train_sentencepiece(texts["train"], 2500)
    for text in (text for part in texts for text in texts[part]):
        assert vocabulary.decode(vocabulary.encode(text)) == text


# Registration


def test_mixtures_are_even():
    mixture = seqio.MixtureRegistry.get("translation")
    assert {task.name for task in mixture.tasks} == {f"translate_{source}_{target}" for source, target in DIRECTIONS}
    assert len({mixture.get_rate(task) for task in mixture.tasks}) == 1


def test_half_of_instruct_is_translation_and_half_question_answering():
    tasks, rates = registry.tasks_and_rates(registry.get_mixture_or_task("instruct"))
    share = sum(rate for task, rate in zip(tasks, rates, strict=True) if task.name.startswith("translate_"))
    assert share == pytest.approx(0.5)
    assert {task.name for task in tasks if not task.name.startswith("translate_")} >= {
        "qa_yes_no_border",
        "qa_open_book",
    }


def test_a_task_shows_seen_wordings_in_training_and_scores_bleu_and_chrf():
    task = seqio.TaskRegistry.get("translate_en_zh")
    instructions = registry.instructions_of(task)
    assert {example["template_split"] for example in instructions.render("train")} == {"seen"}
    assert {example["template_split"] for example in instructions.render("validation")} == {"seen", "unseen"}
    scores = {}
    for metric in task.predict_metric_fns:
        scores |= metric([["2024年3月5日星期二"]], ["2024年3月5日星期二"])
    assert scores == {"chrf": pytest.approx(100), "bleu": pytest.approx(100)}


# WMT


@pytest.mark.parametrize("direction", wmt.DIRECTIONS, ids=names_of)
def test_wmt_renders_a_mocked_set(direction):
    """Feature names are those of the installed builder, or the mocked examples would not fit."""
    task = seqio.TaskRegistry.get("wmt_{}_{}".format(*direction))
    with tfds.testing.mock_data(num_examples=2, policy=tfds.testing.MockPolicy.USE_CODE):
        examples = list(registry.instructions_of(task).render("train"))
    assert len(examples) == 2
    assert all(example["template_split"] == "seen" and example["targets"] for example in examples)


def test_wmt_row_by_hand():
    example = {"de": "Wie spa\u0308t ist es?".encode(), "en": b"What time is it?"}
    assert wmt.row("en", "de", example) == {"text": "What time is it?", "translation": "Wie spät ist es?"}
    assert wmt.row("de", "en", example)["translation"] == "What time is it?"


def test_importing_wmt_reads_nothing_and_its_rows_say_in_one_line_what_they_need(monkeypatch):
    def read(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", read)
    monkeypatch.setattr(registry, "register_task", lambda *args, **kwargs: None)
    monkeypatch.setattr(registry, "register_mixture", lambda *args, **kwargs: None)
    spec = importlib.util.spec_from_file_location("wmt_again", Path(wmt.__file__))
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    source = registry.instructions_of(seqio.TaskRegistry.get("wmt_en_de")).source
    with pytest.raises(
        UserError, match=r"^TFDS set 'wmt14_translate/de-en' cannot be prepared: .*: no route; it needs"
    ):
        list(source.rows("train"))
