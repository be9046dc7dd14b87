"""Hugging Face folders as a source: every way that they store weights, every variant's config.json, every mistake."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from t5x_lite import partitioning
from t5x_lite.errors import UserError
from t5x_lite.interop import load_model, open_source
from t5x_lite.interop.hugging_face import read_config, their_names, write_config
from t5x_lite.model.names import named
from tests.model.reference import VARIANTS, torch_model

V1_0, V1_1, MT5, BYT5, UMT5, PADDED = VARIANTS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A v1.1 model as transformers saves it, whose encoder and decoder differ in depth: (folder, its tensors)."""
    folder = tmp_path_factory.mktemp("hugging_face")
    torch_model(BYT5).save_pretrained(folder)
    return folder, load_file(folder / "model.safetensors")


@pytest.fixture
def stored(saved, tmp_path):
    """The same with config.json only, to be given weights."""
    (tmp_path / "config.json").write_bytes((saved[0] / "config.json").read_bytes())
    return tmp_path, dict(saved[1])


def load(folder, config=None, partitioner=None):
    source = open_source(folder)
    return named(load_model(source, config or source.config, partitioner or partitioning.make_partitioner()))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(array), err_msg=name)


def test_every_parameter_is_the_tensor_of_its_name(saved):
    folder, tensors = saved
    found = load(folder)
    assert {"shared.weight", "lm_head.weight"} <= tensors.keys()
    for name, theirs in their_names(open_source(folder).config).items():
        expected = tensors[theirs].numpy()
        ours = np.asarray(found[name])
        ours = ours.reshape(-1, ours.shape[-1]) if name.endswith("out/kernel") else ours.reshape(len(ours), -1)
        ours = ours[:, 0] if expected.ndim == 1 else ours
        transposed = expected.T if name.endswith(("/kernel", "/rel_embedding")) else expected
        np.testing.assert_array_equal(ours, transposed, err_msg=name)


def shards(tensors: dict) -> dict[str, dict]:
    """Two halves, cut in the middle of a layer."""
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    return {f"{n}-of-2": {name: tensors[name] for name in half} for n, half in enumerate(halves, start=1)}


def store(folder: Path, tensors: dict, storage: str) -> None:
    save, stem, end = {
        "safetensors": (save_file, "model", "safetensors"),
        "bin": (torch.save, "pytorch_model", "bin"),
    }[storage.split()[-1]]
    if not storage.startswith("several"):
        save(tensors, folder / f"{stem}.{end}")
        return
    where = {}
    for part, some in shards(tensors).items():
        save(some, folder / f"{stem}-{part}.{end}")
        where |= dict.fromkeys(some, f"{stem}-{part}.{end}")
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("storage", ["one safetensors", "several safetensors", "one bin", "several bin"])
def test_every_storage_gives_the_same_weights(saved, stored, storage):
    folder, tensors = stored
    store(folder, tensors, storage)
    assert_same(load(folder), load(saved[0]))


@pytest.mark.parametrize("storage", ["one safetensors", "one bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly_into_any_dtype(stored, storage, dtype):
    folder, tensors = stored
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    store(folder, tensors, storage)
    source = open_source(folder)
    assert source.dtype == str(dtype).removeprefix("torch.")
    name, theirs = "encoder/layers_2/mlp/wi_1/kernel", "encoder.block.2.layer.1.DenseReluDense.wi_1.weight"
    for wanted in (jnp.float32, jnp.bfloat16):
        leaf = jax.ShapeDtypeStruct((48, 96), wanted, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        found = source.load({"x": (name, leaf)})["x"]
        assert found.dtype == wanted
        torch_dtype = {jnp.float32: torch.float32, jnp.bfloat16: torch.bfloat16}[wanted]
        expected = tensors[theirs].to(torch_dtype).float().numpy().T
        np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def test_the_older_names_of_the_embeddings(stored, saved):
    folder, tensors = stored
    table = tensors.pop("shared.weight")
    store(folder, tensors | {"encoder.embed_tokens.weight": table}, "one safetensors")
    assert_same(load(folder), load(saved[0]))


SHARDED = (("vocab", "model"), ("mlp", "model"), ("heads", "model"), ("kv", "model"), ("embed", "fsdp"))


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"model": 8}, {"fsdp": 4, "model": 2}], ids=str)
@pytest.mark.parametrize("scanned", [False, True])
def test_shards_are_cut_from_the_files_as_the_mesh_wants_them(tmp_path, mesh, scanned):
    """Three heads do not divide: their sizes are cut instead, across the axis that the files have for both."""
    torch_model(V1_1).save_pretrained(tmp_path)
    layout = dataclasses.replace(open_source(tmp_path).config, scan_layers=scanned)
    found = load(tmp_path, layout, partitioning.make_partitioner({"data": 1} | mesh, SHARDED))
    assert_same(found, load(tmp_path, layout))
    kernel = found[f"encoder/{'layers' if scanned else 'layers_1'}/attention/query/kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 8


def test_the_vocabularys_padding_is_zero_and_invisible(tmp_path):
    torch_model(PADDED).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert (source.config.vocab_size, source.config.vocab_rows) == (301, 384)
    found = load(tmp_path)
    assert found["token_embedder/embedding"].shape == (384, 48)
    assert found["decoder/logits_dense/kernel"].shape == (48, 384)
    assert not np.any(np.asarray(found["token_embedder/embedding"])[301:])
    assert not np.any(np.asarray(found["decoder/logits_dense/kernel"])[:, 301:])
    assert source.config.num_parameters == sum(p.numel() for p in torch_model(PADDED).parameters())


# ---------------------------------------------------------------------- config.json


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_config_of_every_variant(variant, tmp_path):
    model = torch_model(variant)
    model.save_pretrained(tmp_path)
    config = open_source(tmp_path).config
    assert (config.num_encoder_layers, config.num_decoder_layers) == variant.layers
    assert config.activations == (("gelu", "linear") if variant.gated else ("relu",))
    assert config.tie_embeddings == variant.tied
    assert config.relative_bias_per_layer == (variant.kind == "UMT5")
    assert config.num_parameters == sum(p.numel() for p in model.parameters())
    written = write_config(config, "float32", {})
    # What is written reads back as the same model: nothing hangs on a default.
    assert read_config(written, "there", has_head=not variant.tied) == config


PUBLISHED = {"vocab_size": 32128, "d_model": 512, "num_heads": 6, "d_kv": 64, "d_ff": 1024, "num_layers": 8}


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({"model_type": "t5"}, True),
        ({"model_type": "t5", "tie_word_embeddings": False}, False),
        ({"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"model_type": "mt5", "tie_word_embeddings": True}, False),
        ({"model_type": "umt5", "tie_word_embeddings": True}, False),
    ],
)
def test_whether_the_head_is_tied_and_scaled(settings, tied):
    assert read_config(PUBLISHED | settings, "there", has_head=True).tie_embeddings == tied


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "bart"}, "model_type 'bart' is not of T5's family; t5, mt5, umt5 are"),
        ({"model_type": "longt5"}, "model_type 'longt5' is not of T5's family; nearest: 't5'"),
        ({"model_type": "t5", "feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu' is not supported"),
        ({"model_type": "t5", "d_ff": 0}, "describes no model: T5Config.d_ff is 0"),
    ],
)
def test_a_config_that_is_no_t5_is_refused(settings, says):
    with pytest.raises(UserError, match=re.escape(says)):
        read_config(PUBLISHED | settings, "there", has_head=True)


def test_a_config_without_a_size_is_refused():
    settings = {name: value for name, value in PUBLISHED.items() if name != "d_kv"} | {"model_type": "t5"}
    with pytest.raises(UserError, match=r"config\.json has no 'd_kv'"):
        read_config(settings, "there", has_head=True)


# ---------------------------------------------------------------------- mistakes


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


NORM = "encoder.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: without(t, NORM), f"no tensor '{NORM}' in its weights; nearest: 'decoder.final_layer_norm.weight'"),
        (lambda t: t | {NORM: torch.ones(47)}, f"'{NORM}' has shape (47,), and its config.json means (48,)"),
        (lambda t: t | {NORM: torch.ones(48, dtype=torch.int8)}, f"tensor '{NORM}' is I8; weights are read from F32"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_wrong_tensors_are_told_before_loading_or_at_it(stored, change, says):
    folder, tensors = stored
    store(folder, change(tensors), "one safetensors")
    with pytest.raises(UserError, match=re.escape(says)) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_head_that_its_config_ties_away_is_refused(tmp_path):
    torch_model(V1_0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["shared.weight"].clone()}, tmp_path / "model.safetensors")
    open_source(tmp_path)  # the same head, written out, is harmless
    save_file(tensors | {"lm_head.weight": torch.randn(512, 48)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"ties the head .* set tie_word_embeddings to false"):
        open_source(tmp_path)


def test_no_weights(stored):
    with pytest.raises(UserError, match=r"has no weights; it needs one of model\.safetensors, .*pytorch_model\.bin"):
        open_source(stored[0])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_cut_off(stored, name):
    folder, tensors = stored
    store(folder, tensors, "one " + name.split(".")[1])
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{re.escape(name)}' is no (whole|readable)") as error:
        open_source(folder)
    assert "\n" not in str(error.value)


def test_an_index_without_its_file_or_its_tensor(stored):
    folder, tensors = stored
    store(folder, tensors, "several safetensors")
    second = folder / "model-2-of-2.safetensors"
    save_file(dict(list(load_file(second).items())[1:]), second)
    with pytest.raises(UserError, match=r"says that 'model-2-of-2.safetensors' has '.*', and it has not"):
        open_source(folder)
    second.unlink()
    with pytest.raises(UserError, match=r"names 'model-2-of-2.safetensors', which is not there"):
        open_source(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="is no index of weight files"):
        open_source(folder)


def test_a_config_that_is_no_json(stored):
    (stored[0] / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json' is no JSON"):
        open_source(stored[0])


def test_a_file_instead_of_its_folder(saved):
    with pytest.raises(UserError, match=r"INITIAL_CHECKPOINT_PATH '.*' is a file; give the folder that it is in"):
        open_source(saved[0] / "model.safetensors")


HUB = """
import sys
from t5x_lite.errors import UserError
from t5x_lite.interop import open_source
try:
    print(open_source(sys.argv[1], "--from").where)
except UserError as error:
    print("UserError:", error)
"""


def hub(name: str, cache: Path) -> str:
    """What opening a name says in a process without network, whose cache is `cache`."""
    environment = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run([sys.executable, "-c", HUB, name], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_a_name_is_found_in_the_cache_without_network(saved, tmp_path):
    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--small" / "refs").mkdir()
    (tmp_path / "models--someone--small" / "refs" / "main").write_text("0" * 40)
    for file in ("config.json", "model.safetensors"):
        (snapshot / file).write_bytes((saved[0] / file).read_bytes())
    assert hub("someone/small", tmp_path) == str(snapshot)


def test_a_name_that_is_nowhere_is_one_line(tmp_path):
    said = hub("someone/other", tmp_path)
    assert said.startswith("UserError: --from 'someone/other': no local folder of that name, not in the Hugging Face")
    assert str(tmp_path) in said and "set --from to a local folder with config.json and model.safetensors" in said
    assert "\n" not in said
