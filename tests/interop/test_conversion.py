"""Whole models from one format to the other: bit for bit, folders that transformers loads, all of it or nothing."""

import contextlib
import dataclasses
import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t5x_lite import convert as door
from t5x_lite import partitioning, run_folder
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import conversion, load_model, open_source
from t5x_lite.model import abstract_params, logical_axes, stack_layers
from t5x_lite.model.names import named
from tests.model.reference import VARIANTS, Variant, ours, torch_model

V1_0, V1_1, MT5, BYT5, UMT5, PADDED = VARIANTS
TEXT = "the cat sat on <extra_id_0> mat."
KEPT = {"config": {"n_positions": 512}, "generation_config": {"max_new_tokens": 9, "num_beams": 1}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several would only wait for each other at matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spiece():
    """A SentencePiece model with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"the {one} sat on the {other} mat." for one in "cat dog" for other in "red blue"]),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def change_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def publish(variant: Variant, folder: Path, spiece: bytes, dtype: torch.dtype = torch.float32) -> Path:
    """A model as its authors would put it on the hub: weights, tokenizer, and settings of their own."""
    torch_model(variant).to(dtype).save_pretrained(folder)
    if variant == BYT5:
        transformers.ByT5Tokenizer(model_max_length=77).save_pretrained(folder)
    else:
        (folder / "spiece.model").write_bytes(spiece)
        settings = {"extra_ids": 0 if variant == MT5 else 100, "model_max_length": 77}
        change_json(folder / "tokenizer_config.json", settings)
        transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(folder)
    for name, settings in KEPT.items():
        change_json(folder / f"{name}.json", settings)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory, spiece):
    return publish(PADDED, tmp_path_factory.mktemp("published"), spiece)


def convert(folder: Path, to: Path, **options) -> Path:
    source = open_source(folder)
    conversion.convert(source, str(to), vocabulary=source.vocabulary(), **options)
    return to


@dataclasses.dataclass(frozen=True)
class Trip:
    dtype: torch.dtype
    original: Path
    run: Path
    exported: Path
    again: Path


def marks(variant: Variant, dtype: torch.dtype) -> list:
    """bfloat16 of one variant is quick enough for every run."""
    return [] if dtype == torch.float32 or variant == PADDED else [pytest.mark.slow]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((variant, dtype), id=f"{variant.name}, {dtype}", marks=marks(variant, dtype))
        for variant in VARIANTS
        for dtype in (torch.float32, torch.bfloat16)
    ],
)
def trip(request, tmp_path_factory, spiece):
    """Hugging Face -> t5x_lite -> Hugging Face -> t5x_lite."""
    variant, dtype = request.param
    folder = tmp_path_factory.mktemp("trip")
    original = publish(variant, folder / "original", spiece, dtype)
    run = convert(original, folder / "run")
    exported = convert(run, folder / "exported", format="hf")
    return Trip(dtype, original, run, exported, convert(exported, folder / "again"))


def assert_same_tensors(found: Path | dict, expected: Path | dict):
    found, expected = (x if isinstance(x, dict) else load_file(x / "model.safetensors") for x in (found, expected))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def weights(run: Path) -> dict[str, np.ndarray]:
    """What a run folder holds, by name."""
    source = open_source(run)
    config = dataclasses.replace(source.config, param_dtype=source.dtype)
    return {n: np.asarray(a) for n, a in named(load_model(source, config, partitioning.make_partitioner())).items()}


def test_every_tensor_comes_back_bit_for_bit(trip):
    """In its dtype and, of the vocabulary, without the rows that pad it."""
    assert_same_tensors(trip.exported, trip.original)
    files = [safe_open(folder / "model.safetensors", "pt") for folder in (trip.exported, trip.original)]
    assert files[0].metadata() == files[1].metadata()  # older versions of transformers refuse a file without
    first, second = weights(trip.run), weights(trip.again)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert str(array.dtype) == str(trip.dtype).removeprefix("torch.")
        assert array.tobytes() == second[name].tobytes(), name


@contextlib.contextmanager
def warnings_of_transformers():
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def test_settings_come_back(trip):
    of_both = [transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (trip.exported, trip.original)]
    for settings in of_both:
        settings.pop("_name_or_path")
    assert of_both[0] == of_both[1] and of_both[0]["n_positions"] == 512
    generation = [(folder / "generation_config.json").read_text() for folder in (trip.exported, trip.original)]
    assert json.loads(generation[0]) == json.loads(generation[1])
    with warnings_of_transformers() as said:
        tokenizers = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (trip.exported, trip.original)]
    assert not said
    assert tokenizers[0].model_max_length == 77 and len(tokenizers[0]) == len(tokenizers[1])
    assert tokenizers[0](TEXT).input_ids == tokenizers[1](TEXT).input_ids
    assert open_source(trip.run).config == open_source(trip.again).config


def in_transformers(folder: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """(what transformers warns of as it loads a folder, what the model answers)."""
    with warnings_of_transformers() as said:
        model, keys = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(keys.values()), keys
    prompts = torch.tensor(np.random.default_rng(0).integers(2, model.config.vocab_size, (2, 20)))
    with torch.no_grad():
        logits = model(input_ids=prompts, decoder_input_ids=prompts).logits
        # Their cache breaks where encoder and decoder differ in depth.
        return said, {"logits": logits, "greedy": model.generate(prompts, use_cache=False, max_new_tokens=5)}


def assert_same_answers(found: dict, expected: dict):
    assert found["logits"].dtype == expected["logits"].dtype
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["greedy"], expected["greedy"])


def test_transformers_answers_as_with_the_original(trip):
    """And warns of no more: for any head that is not tied it says that config.json should say so, as ours does."""
    warned, found = in_transformers(trip.exported)
    warned_before, expected = in_transformers(trip.original)
    assert warned == warned_before and all("tie_word_embeddings=False" in line for line in warned)
    assert_same_answers(found, expected)


def test_a_head_that_is_tied_and_not_scaled_is_written_out(tmp_path, spiece):
    tied = dataclasses.replace(MT5, tied=True)
    original = publish(tied, tmp_path / "original", spiece)
    exported = convert(convert(original, tmp_path / "run"), tmp_path / "exported", format="hf")
    tensors = load_file(original / "model.safetensors")
    assert_same_tensors(exported, tensors | {"lm_head.weight": tensors["shared.weight"]})
    warned, found = in_transformers(exported)
    assert not warned
    assert_same_answers(found, in_transformers(original)[1])


# ---------------------------------------------------------------------- what is written


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    momentum: dict


@pytest.mark.parametrize("scanned", [False, True])
def test_the_last_step_of_a_training_run_is_exported(tmp_path, scanned):
    """Sharded and with an optimizer, and with nothing from Hugging Face in its manifest."""
    model = torch_model(PADDED)
    model.save_pretrained(tmp_path / "original")
    config, params = ours(model)
    config = dataclasses.replace(config, scan_layers=scanned)
    params = stack_layers(params) if scanned else params
    partitioner = partitioning.make_partitioner({"fsdp": 8}, [("embed", "fsdp")])
    shardings = partitioner.shardings(logical_axes(config), abstract_params(config))
    zeros = jax.device_put(jax.tree.map(np.zeros_like, params), shardings)
    params = jax.device_put(params, shardings)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, State(zeros, momentum=params), data_state={})
    checkpoints.save(2, State(params, momentum=zeros), data_state={})
    checkpoints.close()
    vocabularies.byte().save(tmp_path / "run" / "vocabulary")
    manifest = run_folder.describe_model(config, vocabularies.byte(), {"inputs": 8, "targets": 8})
    run_folder.write_manifest(tmp_path / "run", manifest)

    exported = convert(tmp_path / "run", tmp_path / "exported", format="hf")
    assert_same_tensors(exported, tmp_path / "original")
    generation = transformers.GenerationConfig.from_pretrained(exported)
    assert (generation.decoder_start_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 1, 0)
    assert_same_answers(in_transformers(exported)[1], in_transformers(tmp_path / "original")[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer("aé").input_ids == [3 + byte for byte in "aé".encode()] + [1]


@pytest.mark.parametrize("size", [30_000, 200_000], ids=["smaller than a tensor", "of some tensors"])
def test_a_large_model_is_several_files_with_an_index(tmp_path, published, monkeypatch, size):
    monkeypatch.setattr(conversion, "_FILE_SIZE", size)
    exported = convert(published, tmp_path / "exported", format="hf")
    names = sorted(path.name for path in exported.glob("*.safetensors"))
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)]
    files = {name: load_file(exported / name) for name in names}
    expected = load_file(published / "model.safetensors")
    assert_same_tensors({name: tensor for file in files.values() for name, tensor in file.items()}, expected)
    sizes = {name: [tensor.nbytes for tensor in file.values()] for name, file in files.items()}
    assert len(names) > 2 and all(len(of_file) == 1 or sum(of_file) <= size for of_file in sizes.values())
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: name for name, file in files.items() for tensor in file}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_same_answers(in_transformers(exported)[1], in_transformers(published)[1])


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float16, "bfloat16", torch.bfloat16),
    ],
    ids=str,
)
def test_weights_are_rounded_to_the_dtype_asked_for(tmp_path, spiece, stored, asked, written):
    original = publish(PADDED, tmp_path / "original", spiece, stored)
    expected = {name: tensor.to(written) for name, tensor in load_file(original / "model.safetensors").items()}
    assert_same_tensors(convert(original, tmp_path / "direct", format="hf", dtype=asked), expected)
    run = convert(original, tmp_path / "run", dtype=asked)
    exported = convert(run, tmp_path / "exported", format="hf")
    assert_same_tensors(exported, expected)
    assert transformers.AutoConfig.from_pretrained(exported).dtype == written


# ---------------------------------------------------------------------- all or nothing


@pytest.fixture
def original(published, tmp_path):
    return shutil.copytree(published, tmp_path / "original")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("format", "module", "function"),
    [
        ("hf", conversion, "restore_partial"),
        ("hf", conversion, "write_tokenizer"),
        ("t5x_lite", conversion, "restore_partial"),
        ("t5x_lite", run_folder, "write_manifest"),
    ],
)
def test_what_ends_early_leaves_no_folder_and_the_next_one_is_whole(
    tmp_path, original, monkeypatch, format, module, function
):
    def end(*arguments, **options):
        raise KeyboardInterrupt

    to = tmp_path / "new" / "model"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, function, end)
        convert(original, to, format=format)
    assert not to.exists()
    (left,) = to.parent.iterdir()
    (left / "of_the_killed").touch()
    convert(original, to, format=format)
    assert list(to.parent.iterdir()) == [to] and not list(to.rglob("of_the_killed"))
    assert_same_tensors(to if format == "hf" else convert(to, tmp_path / "exported", format="hf"), original)


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as error:
        door.main([str(argument) for argument in arguments])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_with_content_is_refused_and_untouched(tmp_path, original):
    before = contents(tmp_path)
    for to in (original, original / "config.json"):
        assert refusal(f"--from={original}", f"--to={to}") == f"--to '{to}' exists and is not empty; name a new folder"
    assert contents(tmp_path) == before


def test_a_larger_vocabulary_than_the_model_is_refused(tmp_path, original, spiece):
    (tmp_path / "mine.model").write_bytes(spiece)
    change_json(original / "config.json", {"vocab_size": 20})
    tensors = load_file(original / "model.safetensors")
    small = {name: tensors[name][:20].clone() for name in ("shared.weight", "lm_head.weight")}
    save_file(tensors | small, original / "model.safetensors")
    size = sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()
    said = refusal(f"--from={original}", f"--to={tmp_path / 'to'}", f"--vocabulary={tmp_path / 'mine.model'}")
    assert said == (
        f"{original}: the model has 20 rows and the vocabulary {size} ids; "
        "name the vocabulary that the model was trained with"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"original", "mine.model"}


# ---------------------------------------------------------------------- the door


def test_the_door_says_what_it_wrote(tmp_path, original, capsys):
    door.main([f"--from={original}", f"--to={tmp_path / 'run'}", "--vocabulary=bytes"])
    count = sum(tensor.numel() for tensor in load_file(original / "model.safetensors").values())
    of_bytes = "259 tokens, 301 rows"
    assert capsys.readouterr().out == (
        f"{tmp_path / 'run'}: {count:,} parameters in float32, {of_bytes}, from {original}\n"
    )
    assert open_source(tmp_path / "run").vocabulary().kind == "bytes"
    door.main([f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'exported'}", "--format=hf", "--dtype=bfloat16"])
    assert f"{count:,} parameters in bfloat16, {of_bytes}, from " in capsys.readouterr().out
    expected = {name: tensor.bfloat16() for name, tensor in load_file(original / "model.safetensors").items()}
    assert_same_tensors(tmp_path / "exported", expected)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from=original"], "the following arguments are required: --to"),
        (["--from=original", "--to=to", "--format=onnx"], "argument --format: invalid choice: 'onnx'"),
        (["--from=original", "--to=to", "--dtype=float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--from=original", "--to=to", "--vocab=bytes"], "no flag '--vocab'; nearest: '--vocabulary'"),
        (["--from=original", "--to=to", "--vocabulary=no.model"], "'no.model' is no SentencePiece model"),
        (["--from=original/config.json", "--to=to"], "is a file; give the folder that it is in"),
        (["--from=original", "--to=original/config.json/to"], "--to 'original/config.json/to' cannot be made ("),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, original, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_an_empty_folder_is_given_by_its_name(tmp_path, original, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert refusal(f"--from={original}", "--to=.").startswith("--to '.' cannot be made (")
    monkeypatch.chdir(tmp_path)
    door.main([f"--from={original}", "--to=empty", "--format=hf"])
    assert_same_tensors(tmp_path / "empty", original)


@pytest.mark.slow
def test_the_door_as_a_process(tmp_path, original):
    def run(*arguments):
        command = [sys.executable, "-m", "t5x_lite.convert", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    right = run(f"--from={original}", f"--to={tmp_path / 'exported'}", "--format=hf")
    assert (right.returncode, right.stderr, len(right.stdout.splitlines())) == (0, "", 1)
    assert_same_tensors(tmp_path / "exported", original)
    wrong = run(f"--from={original}", f"--to={tmp_path / 'exported'}")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        f"python -m t5x_lite.convert: --to '{tmp_path / 'exported'}' exists and is not empty; name a new folder\n"
    )
