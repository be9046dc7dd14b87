"""Text in, text out: a run folder whose model writes "Ja!", whatever it is asked."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data.vocabularies import EOS_ID, Vocabulary
from t5x_lite.decoding.engine import Answer, Engine
from t5x_lite.decoding.options import Decoding
from t5x_lite.errors import UserError
from t5x_lite.model import T5Config, abstract_params
from t5x_lite.run_folder import describe_model, write_manifest

BYTES = Vocabulary("bytes")
SIZE = BYTES.size
CONFIG = T5Config(
    vocab_size=SIZE,
    d_model=SIZE,
    num_heads=1,
    head_dim=2,
    d_ff=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    layer_norm_epsilon=1e-12,  # so that scores by hand need none
)
TOP = 8.0  # the logit of the next token; every other one has 0
LIKELY, UNLIKELY = (logit - np.log(np.exp(TOP) + SIZE - 1) for logit in (TOP, 0.0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    params: dict


def writes(text):
    """All sublayers write zeros, so the head reads the last token off its unit vector, normed to sqrt(SIZE)."""
    tokens = [0, *BYTES.encode(text), EOS_ID]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(CONFIG))
    params["token_embedder"]["embedding"] = jnp.eye(SIZE)
    params["decoder"]["decoder_norm"]["scale"] = jnp.full(SIZE, SIZE**-0.5)
    params["decoder"]["logits_dense"]["kernel"] = jnp.zeros((SIZE, SIZE)).at[tokens[:-1], tokens[1:]].set(TOP)
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Step 2 has the best score."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, keep_last=3, best_metric="f1")
    for step, text, score in ((1, "Nein", 0.1), (2, "Ja!", 0.9), (3, "Oh", 0.5)):
        checkpoints.save(step, Weights(writes(text)), {}, {"f1": score})
    checkpoints.close()
    BYTES.save(folder / "vocabulary")
    lengths = {"inputs": 24, "targets": 6}
    write_manifest(folder, describe_model(CONFIG, BYTES, lengths) | {"best_metric": "f1"})
    return folder


@pytest.fixture(scope="module")
def engine(run):
    return t5x_lite.load(str(run))


def test_greedy_answers(engine):
    first, second = engine.generate(["Really?", "And now?"])
    assert first == second
    assert (first.text, first.ended, first.others) == ("Ja!", True, ())
    assert first.score == pytest.approx(4 * LIKELY, rel=1e-4)


@pytest.mark.parametrize(("step", "text"), [(None, "Ja!"), (1, "Nein"), (3, "Oh")])
def test_the_best_step_is_opened_unless_another_is_asked_for(run, step, text):
    head = t5x_lite.load(str(run), step).generator.params["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_array_equal(head, writes(text)["decoder"]["logits_dense"]["kernel"])


def test_others_come_after_the_best_in_their_order(engine):
    """To end at once misses one likely token, and so does an end after the first."""
    (best,) = engine.generate(["Really?"], beams=4, n_best=3)
    found = [best, *best.others]
    assert [answer.text for answer in found] == ["Ja!", "", "J"]
    scores = [4 * LIKELY, UNLIKELY, LIKELY + UNLIKELY]
    np.testing.assert_allclose([answer.score for answer in found], scores, rtol=1e-4)
    assert all(isinstance(answer, Answer) and not answer.others for answer in best.others)


def test_an_answer_goes_on_from_its_prefix(engine):
    short, long = engine.generate(["Really?"] * 2, prefixes=["", "J"])
    assert (short.text, long.text) == ("Ja!", "a!")
    assert long.score == pytest.approx(3 * LIKELY, rel=1e-4)


def test_an_answer_is_as_long_as_the_runs_targets_unless_told_otherwise(engine):
    assert engine.decoding() == Decoding(max_tokens=6)
    assert engine.decoding(max_tokens=2, beams=3) == Decoding(max_tokens=2, beams=3)


def test_scores_of_targets(engine):
    right, wrong = engine.score(["Really?"] * 2, ["Ja!", "Jo"])
    np.testing.assert_allclose(right.tokens, [LIKELY] * 4, rtol=1e-4)
    np.testing.assert_allclose(wrong.tokens, [LIKELY, UNLIKELY, -np.log(SIZE)], rtol=1e-4)  # after o comes nothing
    assert wrong.total == pytest.approx(sum(wrong.tokens))


def test_a_translation_is_asked_for_by_the_languages_name(engine, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Engine, "generate", lambda self, prompts, **o: asked.append((prompts, o)) or [Answer("", 0, True)]
    )
    engine.translate("Yes!", "de", beams=4)
    assert asked == [(["Translate to German: Yes!"], {"beams": 4})]


def test_prompts_are_cut_to_the_runs_inputs_aloud(engine, caplog):
    with caplog.at_level(logging.WARNING):
        tokens = engine.encode(["a" * 23, "b" * 24])
    assert [len(row) for row in tokens] == [24, 24] and all(row[-1] == EOS_ID for row in tokens)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 2 prompts cut to the run's 24 tokens; the first: {'b' * 24}..."
    ]


def test_after_warming_up_a_request_compiles_nothing(engine):
    cold = engine.generator.compile_count
    engine.warm_up(longest_prompt=24, most_prompts=2, max_tokens=3)
    before = engine.generator.compile_count
    assert before > cold
    engine.generate(["a"] * 2, max_tokens=3)
    engine.generate(["b" * 23], max_tokens=3)
    assert engine.generator.compile_count == before


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.generate(["?"], beam=4), "no option 'beam' of decoding; nearest: 'beams'"),
        (lambda e: e.answer("?", num_beams=4), "no option 'num_beams' of decoding; nearest: 'beams'"),
        (lambda e: e.warm_up(longest_prompt=4, top=4), "no option 'top' of decoding; nearest: 'top_p', 'top_k'"),
        (lambda e: e.generate(["?"], beams=0), "beams is 0; it must be a whole number of at least 1"),
        (lambda e: e.generate(["?"] * 2, prefixes=["a"]), "1 prefixes for 2 prompts; give one for each"),
        (lambda e: e.score(["?"], ["a", "b"]), "2 targets for 1 prompts; give one for each"),
        (lambda e: e.translate("?", "Germann"), "target_language 'Germann' is no language; nearest: 'German'"),
    ],
)
def test_mistakes_are_told_in_a_line(engine, call, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        call(engine)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_told(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        t5x_lite.load(str(tmp_path))


ANSWERING = """
import json, sys
import t5x_lite
light = "jax" not in sys.modules
engine = t5x_lite.load(sys.argv[1])
answers = [engine.answer("Really?"), engine.translate("Yes!", "de")]
heavy = {"tensorflow", "seqio", "tensorflow_text", "t5", "torch", "transformers", "gin"} & set(sys.modules)
print(json.dumps([light, answers, sorted(heavy)]))
"""


def test_answering_needs_neither_tensorflow_nor_tasks(run):
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.run(
        [sys.executable, "-c", ANSWERING, str(run)], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [True, ["Ja!", "Ja!"], []]
