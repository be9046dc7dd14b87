"""Languages by code and by name."""

import re

import pytest

from t5x_lite.decoding.languages import name_of
from t5x_lite.errors import UserError


@pytest.mark.parametrize(
    ("language", "name"),
    [
        ("de", "German"),
        ("DE", "German"),
        ("german", "German"),
        ("zh", "Chinese"),
        ("zh_Hant", "Traditional Chinese"),
        ("pt-BR", "Brazilian Portuguese"),
        ("pt_br", "Brazilian Portuguese"),
        ("Simplified Chinese", "Simplified Chinese"),
        ("haw", "Hawaiian"),
    ],
)
def test_a_code_or_a_name_gives_the_english_name(language, name):
    assert name_of(language) == name


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ("Germann", "target_language 'Germann' is no language; nearest: 'German'"),
        ("12345678", "target_language '12345678' is no language; give a code, like 'de', or a name"),
        ("", "target_language '' is no language; give a code, like 'de', or a name"),
    ],
)
def test_what_is_no_language_is_refused_with_the_nearest(language, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        name_of(language)
    assert "\n" not in str(error.value)
