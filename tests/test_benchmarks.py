"""The tables that benchmarks print of plans, steps and decoding, and the peer that is written here."""

import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import decode, plan_table, results, t5x_style, train_step
from t5x_lite.data.features import encdec_batch
from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.errors import UserError
from t5x_lite.model import T5Config, bind
from t5x_lite.model.names import named
from t5x_lite.planning import search, topology
from t5x_lite.training.losses import cross_entropy
from tests.decoding.models import random_inputs, random_params, whole


def test_a_compilers_word_stands_only_beside_the_settings_that_it_is_about():
    eight = topology.parse("h100:8")
    first = search.ranked(plan_table._asked("small", eight))[0].request
    said = {"gib": 1.5, "ms": 2.0, "mfu": 0.5, "settings": search.describe(first)}
    assert "| 1.5 GiB, 2.0 ms, MFU 50% |" in plan_table._row("small", eight, {"small@h100:8": said})
    other = said | {"settings": "those that another formula ranked first"}
    assert plan_table._row("small", eight, {"small@h100:8": other}) == plan_table._row("small", eight, {})


class NoProcess:
    def __init__(self, *_):
        pass

    def peak_bytes(self):
        return 10**9

    def close(self):
        pass


@pytest.fixture
def a_second_each(monkeypatch):
    """Every engine takes one second for whatever it is asked."""
    for module in (train_step, decode):
        monkeypatch.setattr(module, "Engine", NoProcess)
        monkeypatch.setattr(module, "in_turns", lambda engines, *_: {name: [1.0] for name in engines})
    monkeypatch.setattr(train_step, "in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(decode, "in_process", lambda *_: None)  # its model is written for CTranslate2 too


@pytest.mark.parametrize("engine", train_step.ENGINES)
def test_a_step_of_one_engine_has_a_bound(engine, a_second_each, capsys):
    train_step.main([f"--engine={engine}", "--rows=1"])
    told = capsys.readouterr().out
    assert "small: 1 x (512 + 128) tokens with 1 examples" in told
    assert re.search(r"real tokens/s +640\nfill +100%\npeak memory, GB +1.00\n", told)
    assert "float32 matrix product 137 GFLOP/s: bound" in told


def test_transformers_is_given_the_examples_of_the_packed_rows_each_in_a_row(tmp_path):
    rows = [[([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])], [([4, 1], [3, 1])]]
    batch = encdec_batch(
        [[tuple(map(np.array, each)) for each in row] for row in rows], {"inputs": 8, "targets": 6}, True
    )
    examples = train_step._examples(batch)
    assert [tuple(part.tolist() for part in each) for each in examples] == list(itertools.chain(*rows))
    assert train_step._padded([each[1] for each in examples]).tolist() == [[7, 1, 0], [9, 9, 1], [3, 1, 0]]


# T5X's way


TINY = T5Config(
    vocab_size=64,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,  # below the lengths here, so that all buckets are seen
)
WRITTEN, NEVER = 61, -1  # ends of sequence: one that the model of random weights writes, and one that none does


def random_batch(pack):
    rng = np.random.default_rng(0)
    rows = [
        [tuple(rng.integers(2, 64, length) for length in lengths) for lengths in row]
        for row in ([(13, 9), (8, 7), (2, 5)], [(21, 20)], [(9, 1), (11, 22)])
    ]
    return encdec_batch(rows if pack else [row[-1:] for row in rows], {"inputs": 24, "targets": 23}, pack)


def our_loss(config, params, batch):
    logits = bind(config, params)(batch)
    losses = cross_entropy(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    sums = {"cross_entropy": losses.cross_entropy, "z_loss": losses.z_loss, "accuracy": losses.correct}
    means = {name: part / losses.weight for name, part in sums.items()}
    loss = losses.total / losses.weight
    return loss, means | {"loss": loss}


def metrics_and_gradients(loss, config, params, batch):
    compute = jax.jit(jax.value_and_grad(lambda params: loss(config, params, batch), has_aux=True))
    (_, metrics), grads = compute(params)
    return jax.tree.map(float, metrics), named(grads)


@pytest.mark.parametrize(("pack", "tied"), [(False, False), (True, False), (True, True)])
def test_t5x_style_has_our_loss_and_gradients(pack, tied):
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    params = random_params(TINY)
    if tied:
        del params["decoder"]["logits_dense"]
    batch = random_batch(pack)
    metrics, gradients = metrics_and_gradients(t5x_style.loss_of, config, params, batch)
    our_metrics, ours = metrics_and_gradients(our_loss, config, params, batch)
    assert metrics == pytest.approx(our_metrics, rel=1e-5)
    assert gradients.keys() == ours.keys()
    for name, gradient in gradients.items():
        largest = np.abs(ours[name]).max()
        assert largest > 0, name
        np.testing.assert_allclose(gradient, ours[name], rtol=0, atol=1e-5 * largest, err_msg=name)


def test_t5x_style_steps_down_the_gradient():
    params, batch = random_params(TINY), random_batch(pack=True)
    metrics, gradients = metrics_and_gradients(t5x_style.loss_of, TINY, params, batch)
    before = jax.device_get(named(params))  # the step takes the arrays themselves
    tx = optax.sgd(0.5)
    (params, _), found = t5x_style.make_train_step(TINY, tx)((params, tx.init(params)), batch)
    assert jax.tree.map(float, found) == pytest.approx(metrics, rel=1e-5)
    for name, after in named(params).items():
        np.testing.assert_allclose(after, before[name] - 0.5 * gradients[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("eos_id", [WRITTEN, NEVER])
@pytest.mark.parametrize("beams", [1, 4])
def test_t5x_style_finds_our_sequences(beams, eos_id):
    """Where any have ended, T5X leaves out those that were cut off."""
    params, inputs = random_params(TINY, seed=11), random_inputs(TINY.vocab_size, lengths=(3, 30, 17))
    params["decoder"]["logits_dense"]["kernel"] *= 4  # so sure that the length penalty matters
    table = np.array([tokens + [0] * (30 - len(tokens)) for tokens in inputs], np.int32)
    found = np.asarray(t5x_style.generate(TINY, params, table, max_tokens=12, beams=beams, eos_id=eos_id))
    options = Decoding(max_tokens=12, beams=beams, n_best=beams, length_alpha=0.6 if beams > 1 else 0.0)
    have_ended = 0
    for ids, ours in zip(found, Generator(TINY, params, eos_id=eos_id).generate(inputs, options), strict=True):
        ended = [one for one in ours if one.ended]
        have_ended += len(ended)
        expected = [list(whole(one, eos_id)) for one in ended or ours]
        best_first = ids[::-1][: len(expected)].tolist()
        assert best_first == [tokens + [0] * (12 - len(tokens)) for tokens in expected]
    assert (have_ended > 0) == (eos_id == WRITTEN)


def test_t5x_style_top_k_of_long_rows():
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 5000).reshape(2, 5000), jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, t5x_style.top_k_in_two_stages(x, 4), tuple(jax.lax.top_k(x, 4)))


# Tables of RESULTS.md


FOUND = {
    "date": "2026-11-29",
    "command": "python -m benchmarks.nothing",
    "machine": {"cpu": "A CPU", "cores": 2, "python": "3.11"},
    "versions": {"jax": "0.10.1"},
    "columns": ["ours", "theirs"],
    "rows": {"step, s": ["1.0", "2.0"]},
    "raw": {},
}
TABLE = """`python -m benchmarks.nothing`, 2026-11-29, 2 cores of A CPU,
Python 3.11, jax 0.10.1.

|  | ours | theirs |
| --- | --- | --- |
| step, s | 1.0 | 2.0 |
"""


def test_the_tables_of_the_results_are_those_that_were_recorded():
    text = results._PAGE.read_text()
    assert results.page(text) == text


def test_a_table_of_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_FOLDER", tmp_path)
    (tmp_path / "nothing.json").write_text(json.dumps(FOUND))
    page = "Before\n<!-- results: nothing -->\n{}<!-- end -->\nAfter\n"
    assert results.page(page.format("old\n")) == page.format(TABLE)
    with pytest.raises(UserError, match=r"^nothing: stands in only one of RESULTS\.md and"):
        results.page("Before\n")


def test_a_benchmark_records_what_it_prints(a_second_each, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "_FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "_PAGE", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text("<!-- results: train_step_small -->\n<!-- end -->\n")
    train_step.main(["--engine=t5x_lite", "--rows=1", "--record"])
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`python -m benchmarks.train_step --engine=t5x_lite --rows=1 --record`" in page
    assert "| real tokens/s | 640 |" in page
    found = json.loads((tmp_path / "results" / "train_step_small.json").read_text())
    assert found["raw"]["step"] == {"t5x_lite": [1.0]} and found["versions"]["jax"]


def test_the_bound_of_decoding_is_memory_for_a_row_and_operations_for_many():
    """Of T5 v1.1 small, 22.0 and 16.4 million weights are read a step; a row multiplies each of them once."""
    step, keys = 4 * 38.45e6, 4 * 2 * 8 * 384 * (128 + 16.5)
    assert decode.bound(1, 1, math.inf, 1.0) == pytest.approx(32 * (step + keys), rel=1e-3)
    one, many = (decode.bound(rows, 1, 1.0, math.inf) for rows in (1, 16))
    assert many == pytest.approx(16 * one) and one > 32 * 2 * 38.45e6


def test_decoding_is_recorded_by_case(a_second_each, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "_FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "_PAGE", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text("<!-- results: decode -->\n<!-- end -->\n")
    decode.main(["--case=greedy, batch 1", "--case=beam 10, batch 1", "--record"])
    told, page = capsys.readouterr().out.splitlines(), (tmp_path / "RESULTS.md").read_text()
    share = 1 / decode.bound(1, 10, 2 * 4096**3, 2**30)
    cells = [*["1.000 (1.000)  1.00x"] * len(decode.ENGINES), f"{share:.2f}"]
    assert f"| beam 10, batch 1 | {' | '.join(cells)} |" in page
    assert told[-1].split() == ["beam", "10,", "batch", "1", *" ".join(cells).split()]
    found = json.loads((tmp_path / "results" / "decode.json").read_text())
    assert found["columns"][:-1] == list(decode.ENGINES) and found["columns"][0] == "t5x_lite"
    assert found["raw"]["greedy, batch 1"]["T5X-style"] == [1.0]
