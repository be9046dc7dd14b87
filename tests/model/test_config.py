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


# Published counts, of the Hugging Face checkpoints of these names.
PUBLISHED = {
    "flan_t5_small": 76_961_152,
    "flan_t5_base": 247_577_856,
    "flan_t5_large": 783_150_080,
    "flan_t5_xl": 2_849_757_184,
    "flan_t5_xxl": 11_135_332_352,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "umt5_small": 306_601_984,
}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_files_hold_sizes_only_and_tell_their_count(path):
    config = T5Config(**bindings(path))
    comment = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    counts = [int(number.replace(",", "")) for number in re.findall(r"\b\d[\d,]*,\d{3}\b|\b\d{3}\b", comment)]
    if config.vocab_size:
        assert counts[-1] == config.num_parameters == PUBLISHED.get(path.stem, counts[-1])
    else:
        row = dataclasses.replace(config, vocab_size=1).num_parameters - config.num_parameters
        assert counts == [config.num_parameters, row]


def bindings(path):
    """What a file binds, after what it includes."""
    found = {}
    for line in path.read_text().splitlines():
        if included := re.fullmatch(r'include "(.+)"', line):
            found |= bindings(path.parent / included[1])
        elif line and not line.startswith("#"):
            binding = re.fullmatch(r"T5Config\.(\w+) = (.+)", line)
            found[binding[1]] = ast.literal_eval(binding[2])
    return found


def test_there_are_model_files_of_every_size():
    five, names = ("small", "base", "large", "xl", "xxl"), {path.stem for path in MODELS}
    families = dict.fromkeys(("flan_t5", "t5_v1_1", "mt5", "byt5"), five)
    families |= {"t5": ("small", "base", "large", "3b", "11b"), "umt5": ("small", "base", "xl", "xxl")}
    assert names == {"tiny", *(f"{family}_{size}" for family, sizes in families.items() for size in sizes)}
