"""What a T5Config accepts, and its count of parameters against the published sizes."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from t5x_lite.model import T5Config

MODELS = sorted((Path(__file__).parents[2] / "gin" / "models").glob("*.gin"))
TINY = T5Config(vocab_size=10, d_model=4, num_heads=2, head_dim=3, d_ff=5, num_encoder_layers=1, num_decoder_layers=2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d_model", 0, "d_model is 0; it must be at least 1"),
        ("num_decoder_layers", -1, "num_decoder_layers is -1"),
        ("vocab_size", -5, "vocab_size is -5"),
        ("dropout_rate", 1.0, r"dropout_rate is 1.0; it must lie in \[0, 1\)"),
        ("activations", ("swish",), r"activations is \('swish',\)"),
        ("remat", "some", "remat is 'some'"),
        ("dtype", "float16", "dtype is 'float16'"),
        ("param_dtype", "int8", "param_dtype is 'int8'"),
        ("relative_attention_num_buckets", 6, "num_buckets is 6"),
        ("relative_attention_max_distance", 16, "max_distance 16"),
    ],
)
def test_impossible_values_are_named(field, value, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(TINY, **{field: value})
    assert "\n" not in str(error.value)


def test_survives_json():
    """A manifest holds the config; lists must come back as the tuple that hashing needs."""
    again = T5Config(**json.loads(json.dumps(dataclasses.asdict(TINY))))
    assert again == TINY
    assert hash(again) == hash(TINY)


def test_parameters_counted_by_hand():
    attention = 4 * 4 * 2 * 3
    encoder = attention + 3 * 4 * 5 + 2 * 4
    decoder = 2 * attention + 3 * 4 * 5 + 3 * 4
    assert TINY.num_parameters == encoder + 2 * decoder + 2 * (32 * 2 + 4) + 2 * 10 * 4
    tied = dataclasses.replace(TINY, activations=("relu",), tie_embeddings=True)
    assert tied.num_parameters == TINY.num_parameters - 3 * 4 * 5 - 10 * 4


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_files_hold_sizes_only_and_tell_their_count(path):
    text = path.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    bindings = (re.fullmatch(r"T5Config\.(\w+) = (.+)", line) for line in lines)
    sizes = {binding[1]: ast.literal_eval(binding[2]) for binding in bindings}
    config = T5Config(**sizes)
    comment = " ".join(line for line in text.splitlines() if line.startswith("#"))
    counts = [int(number.replace(",", "")) for number in re.findall(r"\b[\d,]*\d{3}\b", comment)]
    if config.vocab_size:
        assert counts == [config.num_parameters]
    else:
        row = dataclasses.replace(config, vocab_size=1).num_parameters - config.num_parameters
        assert counts == [config.num_parameters, row]


def test_there_are_model_files():
    assert [path.stem for path in MODELS] == [
        *(f"flan_t5_{size}" for size in ("base", "large", "small", "xl", "xxl")),
        "tiny",
    ]
