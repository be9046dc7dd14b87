"""Run folders as a source: either layout of the layers, and partial runs put together with their base."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import interop, partitioning
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import load_model, open_source
from t5x_lite.model import Lora, T5Config, abstract_params, logical_axes, stack_layers, unstack_layers
from t5x_lite.model.lora import is_adapter
from t5x_lite.model.names import named, nested
from t5x_lite.run_folder import describe_model, write_manifest

BASE = T5Config(
    vocab_size=259,  # of bytes; padded to 384
    vocab_multiple=128,
    d_model=16,
    num_heads=2,
    head_dim=4,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
    tie_embeddings=True,
)
SCANNED = dataclasses.replace(BASE, scan_layers=True)
LORA = Lora(rank=3, alpha=6.0, targets=(".*attention/(query|out)", "decoder/.*/wo"))
SHARDED = partitioning.make_partitioner(
    {"data": 1, "fsdp": 4, "model": 2}, [("embed", "fsdp"), ("heads", "model"), ("mlp", "model"), ("vocab", "fsdp")]
)
ONE = partitioning.make_partitioner({"data": 1})
LAYOUTS = [BASE, SCANNED]
# Layouts of the base, of the run and of what is asked for: each pair of them is here.
JOINED = [(BASE, BASE, SCANNED), (BASE, SCANNED, BASE), (SCANNED, BASE, BASE), (SCANNED, SCANNED, SCANNED)]


def layout_name(config) -> str:
    return "scanned" if config.scan_layers else "unrolled"


def random_params(config: T5Config, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = named(abstract_params(config))
    return {name: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for name, leaf in shapes.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    params: dict


def write_run(folder, config: T5Config, params: dict, base=None, step: int = 3, **manifest):
    """A run folder with one step that saved `params`, beside what else is there of it; returns the folder."""
    checkpoints = Checkpoints(folder, keep_last=9)
    checkpoints.save(step, Weights(nested(params)), {})
    checkpoints.close()
    vocabulary = vocabularies.byte()
    vocabulary.save(folder / "vocabulary")
    if base:
        source = open_source(base)
        manifest["base"] = {"path": source.where, "fingerprint": interop.fingerprint(source)}
    write_manifest(folder, describe_model(config, vocabulary, {"inputs": 48, "targets": 12}) | manifest)
    return folder


def load(folder, config: T5Config, partitioner=ONE) -> dict:
    found = named(load_model(open_source(folder), config, partitioner))
    shapes = abstract_params(config)
    wanted = named(partitioner.shardings(logical_axes(config), shapes))
    assert all(leaf.sharding == wanted[name] for name, leaf in found.items())
    return found


def as_layout(params: dict, config: T5Config) -> dict:
    """Whole weights in the layout of a configuration."""
    scanned = any("/layers/" in name for name in params)
    if scanned == config.scan_layers:
        return params
    return named((stack_layers if config.scan_layers else unstack_layers)(nested(params)))


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert found[name].dtype == leaf.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(leaf), err_msg=name)


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("partitioner", [ONE, SHARDED], ids=["one device", "mesh"])
@pytest.mark.parametrize("wanted", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("saved", LAYOUTS, ids=layout_name)
def test_either_layout_is_read_from_either_bit_for_bit(tmp_path, saved, wanted, partitioner):
    params = random_params(saved)
    write_run(tmp_path, saved, params)
    assert_same_bits(load(tmp_path, wanted, partitioner), as_layout(params, wanted))


def test_a_run_folder_says_what_it_is(tmp_path):
    config = dataclasses.replace(BASE, param_dtype="bfloat16", lora=LORA)
    files = {"config": {"model_type": "t5"}}
    source = open_source(write_run(tmp_path, config, random_params(config), hugging_face=files))
    assert source.config == dataclasses.replace(config, lora=None)
    assert source.dtype == "bfloat16"
    assert source.vocabulary().sha256 == vocabularies.byte().sha256
    assert source.lengths == {"inputs": 48, "targets": 12}
    assert source.hugging_face == files
    assert source.parameters(scanned=False) == named(abstract_params(source.config))


# ---------------------------------------------------------------------- runs that trained a part


def some(params: dict) -> dict:
    """What a run that trains the decoder but its embeddings saves."""
    return {name: leaf for name, leaf in params.items() if name.startswith("decoder/")}


@pytest.mark.parametrize(("of_base", "saved", "wanted"), JOINED, ids=layout_name)
def test_a_partial_run_is_its_base_with_what_it_trained(tmp_path, of_base, saved, wanted):
    base, tuned = random_params(of_base), random_params(saved, seed=1)
    write_run(tmp_path / "base", of_base, base)
    write_run(tmp_path / "run", saved, some(tuned), tmp_path / "base")
    expected = as_layout(base, wanted) | some(as_layout(tuned, wanted))
    assert_same_bits(load(tmp_path / "run", wanted, SHARDED), expected)


@pytest.mark.parametrize("wanted", LAYOUTS, ids=layout_name)
def test_a_run_that_trained_some_of_the_layers(tmp_path, wanted):
    base, tuned = random_params(BASE), random_params(BASE, seed=1)
    last = {name: leaf for name, leaf in tuned.items() if name.startswith("decoder/layers_2/")}
    write_run(tmp_path / "base", BASE, base)
    write_run(tmp_path / "run", BASE, last, tmp_path / "base")
    assert_same_bits(load(tmp_path / "run", wanted, SHARDED), as_layout(base | last, wanted))


def test_a_bfloat16_base_stays_one_beside_float32_adapters(tmp_path):
    config = dataclasses.replace(BASE, param_dtype="bfloat16")
    write_run(tmp_path / "base", config, random_params(config))
    adapted = dataclasses.replace(config, lora=LORA)
    adapters = {name: leaf for name, leaf in random_params(adapted).items() if is_adapter(name)}
    source = open_source(write_run(tmp_path / "run", adapted, adapters, tmp_path / "base"))
    assert source.dtype == "bfloat16"
    assert source.parameters(scanned=False) == named(abstract_params(config))


# ---------------------------------------------------------------------- runs with adapters


def adapted(params: dict, config: T5Config, seed: int = 1) -> tuple[dict, dict]:
    """(random adapters as a run of this layout saves them, `params` with them merged in float64)."""
    adapters = {
        name: leaf * 0.3
        for name, leaf in random_params(dataclasses.replace(config, lora=LORA), seed).items()
        if is_adapter(name)
    }
    merged = {name: np.asarray(leaf, np.float64) for name, leaf in as_layout(params, config).items()}
    for name in adapters:
        if name.endswith("lora_a"):
            kernel = name.replace("lora_a", "kernel")
            a, b = (np.asarray(adapters[f"{name[:-1]}{f}"], np.float64) for f in "ab")
            layers = len(a) if "/layers/" in name else 1
            product = a.reshape(layers, -1, 3) @ b.reshape(layers, 3, -1)
            merged[kernel] = merged[kernel] + 6.0 / 3 * product.reshape(merged[kernel].shape)
    return adapters, merged


def assert_merged(found: dict, merged: dict, base: dict) -> None:
    """Kernels with adapters are close, everything else has the base's bits."""
    changed = {name for name in merged if not np.array_equal(merged[name], np.asarray(base[name], np.float64))}
    assert {name.split("/", 2)[2] for name in changed if "decoder" in name} == {
        "self_attention/query/kernel",
        "self_attention/out/kernel",
        "encoder_decoder_attention/query/kernel",
        "encoder_decoder_attention/out/kernel",
        "mlp/wo/kernel",
    }
    assert_same_bits({n: found[n] for n in found if n not in changed}, {n: base[n] for n in base if n not in changed})
    for name in changed:
        assert found[name].dtype == base[name].dtype
        np.testing.assert_allclose(np.asarray(found[name]), merged[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("of_base", "saved", "wanted"), JOINED, ids=layout_name)
def test_adapters_are_folded_into_the_kernels_of_the_base(tmp_path, of_base, saved, wanted):
    base = random_params(of_base)
    adapters, merged = adapted(base, saved)
    write_run(tmp_path / "base", of_base, base)
    write_run(tmp_path / "run", dataclasses.replace(saved, lora=LORA), adapters, tmp_path / "base")
    assert_merged(load(tmp_path / "run", wanted, SHARDED), as_layout(merged, wanted), as_layout(base, wanted))


def test_adapters_beside_weights_that_are_trained_too(tmp_path):
    base, tuned = random_params(BASE), some(random_params(BASE, seed=2))
    adapters, merged = adapted(base | tuned, BASE)
    write_run(tmp_path / "base", BASE, base)
    write_run(tmp_path / "run", dataclasses.replace(BASE, lora=LORA), tuned | adapters, tmp_path / "base")
    assert_merged(load(tmp_path / "run", BASE), merged, base | tuned)


def test_adapters_of_a_run_that_trains_everything(tmp_path):
    params = random_params(BASE)
    adapters, merged = adapted(params, BASE)
    write_run(tmp_path, dataclasses.replace(BASE, lora=LORA), params | adapters)
    assert_merged(load(tmp_path, BASE), merged, params)


def test_adapters_are_added_before_the_weights_are_rounded(tmp_path):
    base = random_params(BASE)
    adapters, merged = adapted(base, BASE)
    write_run(tmp_path / "base", BASE, base)
    write_run(tmp_path / "run", dataclasses.replace(BASE, lora=LORA), adapters, tmp_path / "base")
    found = load(tmp_path / "run", dataclasses.replace(BASE, param_dtype="bfloat16"))
    for name, values in merged.items():  # to 8 significant bits, once
        np.testing.assert_allclose(np.asarray(found[name], np.float64), values, rtol=2**-8 * 1.001, err_msg=name)


def test_adapters_on_a_base_that_is_adapters_on_a_base(tmp_path):
    base = random_params(BASE)
    first, once = adapted(base, BASE, seed=1)
    second, twice = adapted({name: jnp.asarray(leaf) for name, leaf in once.items()}, BASE, seed=2)
    config = dataclasses.replace(BASE, lora=LORA)
    write_run(tmp_path / "base", BASE, base)
    write_run(tmp_path / "first", config, first, tmp_path / "base")
    write_run(tmp_path / "second", config, second, tmp_path / "first")
    assert_merged(load(tmp_path / "second", BASE), twice, base)


# ---------------------------------------------------------------------- the base is gone, or another one


@pytest.fixture
def partial_run(tmp_path):
    write_run(tmp_path / "base", BASE, random_params(BASE))
    return write_run(tmp_path / "run", BASE, some(random_params(BASE, seed=1)), tmp_path / "base")


def test_a_base_that_has_moved_is_told_in_one_line(partial_run):
    (partial_run.parent / "base").rename(partial_run.parent / "elsewhere")
    with pytest.raises(UserError) as error:
        open_source(partial_run)
    said = one_line(error)
    assert f"{partial_run}/checkpoints/3 holds a part of a model, and the rest cannot be read: no checkpoint in" in said
    assert f"(its place is base.path in {partial_run}/manifest.json)" in said


def test_a_base_that_has_changed_is_told_in_one_line(partial_run):
    base = partial_run.parent / "base"
    (base / "checkpoints" / "3").rename(base / "checkpoints" / "2")
    write_run(base, BASE, random_params(BASE, seed=5))
    with pytest.raises(
        UserError, match=r"cannot be read: the base model of this run, '.*/base/checkpoints/3', has changed"
    ) as error:
        open_source(partial_run)
    assert "when the run began; put the old one back" in one_line(error)


def test_a_base_that_trains_on_is_still_the_one_of_its_step(partial_run):
    before = load(partial_run, BASE)
    write_run(partial_run.parent / "base", BASE, random_params(BASE, seed=5), step=4)
    assert_same_bits(load(partial_run, BASE), before)


def test_a_path_of_no_run_is_told_in_one_line(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in '.*/runs/checkpoints'") as error:
        open_source(tmp_path / "runs")
    one_line(error)
