"""Tasks to test with, under names that are new each time."""

import itertools

import hypothesis
import pytest
import seqio
import tensorflow as tf

from t5x_lite.data import registry
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate

# Machines that test are busy; a slow example is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

_numbers = itertools.count()

CAPITALS = (
    InstructionTemplate("plain", "Capital of {country}?", "{capital}"),
    InstructionTemplate("ask", "What is the capital of {country}?", "{capital}", split="unseen"),
)
ROWS = (
    {"country": "Japan", "capital": "Tokyo", "right": ["Tokyo", "Tōkyō"]},
    {"country": "Peru", "capital": "Lima", "right": ["Lima"]},
)


@pytest.fixture
def capitals():
    return CAPITALS


@pytest.fixture
def rows():
    return list(ROWS)


@pytest.fixture
def new_name():
    return lambda word="task": f"{word}_{next(_numbers)}_of_tests"


@pytest.fixture
def new_task(new_name):
    """Registers rows (default two) under a new name, one seen and one unseen wording."""

    def make(rows=ROWS, **settings):
        source = Rows({"train": list(rows), "validation": list(rows)})
        return registry.register_task(new_name(), source, CAPITALS, **({"metrics": [exact_match]} | settings))

    return make


@pytest.fixture
def new_native_task(new_name):
    """Registers a task as other people write them: no templates, their own pre- and postprocessors."""

    def make(count=3):
        def dataset(split, shuffle_files, seed=None):
            return tf.data.Dataset.range(count).map(lambda n: {"q": tf.strings.as_string(n), "a": "n"})

        return seqio.TaskRegistry.add(
            new_name("native"),
            source=seqio.FunctionDataSource(dataset, ["train"], num_input_examples={"train": count}),
            preprocessors=[
                lambda data: data.map(lambda e: {"inputs": e["q"], "targets": e["a"]}),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features={name: seqio.Feature(seqio.ByteVocabulary()) for name in ("inputs", "targets")},
            postprocess_fn=lambda text, **kwargs: text.upper(),
            metric_fns=[],
        )

    return make
