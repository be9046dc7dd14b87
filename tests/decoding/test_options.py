"""What cannot be decoded is said in one line."""

import re

import numpy as np
import pytest

from t5x_lite.decoding.options import Decoding
from t5x_lite.errors import UserError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it must be a whole number of at least 1"),
        ({"max_tokens": 5.0}, "max_tokens is 5.0; it must be a whole number of at least 1"),
        ({"max_tokens": "5"}, "max_tokens is '5'; it must be a whole number of at least 1"),
        ({"max_tokens": None}, "max_tokens is None; it must be a whole number of at least 1"),
        ({"beams": 0}, "beams is 0; it must be a whole number of at least 1"),
        ({"n_best": -1}, "n_best is -1; it must be a whole number of at least 1"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1; it must be a whole number of at least 0"),
        ({"no_repeat_ngram": 1.5}, "no_repeat_ngram is 1.5; it must be a whole number of at least 0"),
        ({"length_alpha": -0.1}, "length_alpha is -0.1; it must not be negative"),
        ({"temperature": -1.0}, "temperature is -1.0; it must not be negative"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a number"),
        ({"temperature": float("inf")}, "temperature is inf; it must be a number"),
        ({"length_alpha": "much"}, "length_alpha is 'much'; it must be a number"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; it must lie in (0, 1]"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1; it must lie in (0, 1]"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p is -0.1; it must lie in [0, 1]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be positive, and 1 is none"),
        ({"temperature": 1.0, "beams": 2}, "beams is 2 with temperature 1.0: search or sample, not both"),
        ({"top_k": 5}, "top_k is set and temperature is 0: only samples use it; set temperature too"),
        ({"top_p": 0.9}, "top_p is set and temperature is 0: only samples use it; set temperature too"),
        ({"beams": 2, "min_p": 0.1}, "min_p is set and temperature is 0: only samples use it; set temperature too"),
        ({"n_best": 2}, "n_best is 2 with 1 beam(s): set beams to at least as many, or a temperature"),
        ({"n_best": 5, "beams": 4}, "n_best is 5 with 4 beam(s): set beams to at least as many, or a temperature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        Decoding(**{"max_tokens": 5} | options)
    assert "\n" not in str(error.value)


def test_equal_options_are_one_program_whatever_the_type_of_their_numbers():
    of_numpy = Decoding(max_tokens=np.int64(5), beams=np.int32(4), length_alpha=np.float64(0.5))
    plain = Decoding(max_tokens=5, beams=4, length_alpha=0.5)
    assert (of_numpy, hash(of_numpy)) == (plain, hash(plain))
