"""`python -m t5x_lite.cache`: its own flags, and those that it hands to Beam."""

import pytest

from t5x_lite import cache
from t5x_lite.errors import UserError
from t5x_lite.training import caching


@pytest.fixture
def called(monkeypatch):
    found = {}
    monkeypatch.setattr(
        caching, "write_cache", lambda config, output, flags: found.update(config=config, output=output, flags=flags)
    )
    return found


def test_other_flags_are_beams_as_they_were_given(called):
    beams = ["--runner=DataflowRunner", "--project", "mine", "--experiments=a=b", "--experiments=c"]
    cache.main(["--gin_file=gin/qa.gin", *beams, "--output=there", "--gin.VOCABULARY_SIZE=99"])
    assert (called["output"], called["flags"]) == ("there", beams)
    assert (called["config"].mixture_or_task_name, called["config"].vocabulary_size) == ("qa", 99)


def test_another_mixture(called):
    cache.main(["--gin_file=gin/qa.gin", "--output=there", "--mixture", "qa_capital"])
    assert called["config"].mixture_or_task_name == "qa_capital"
    assert called["flags"] == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gin_file=gin/qa.gin"], "--output"),
        (["--gin_file=gin/qa.gin", "--outptu=there"], "no flag '--outptu'; nearest: '--output'"),
        (["--gin_file=gin/qa.gin", "--output=there", "--mixtrue=qa"], "no flag '--mixtrue'; nearest: '--mixture'"),
    ],
)
def test_slips_of_its_own_flags_do_not_reach_beam(called, words, message):
    with pytest.raises(UserError, match=message):
        cache.main(words)
    assert not called
