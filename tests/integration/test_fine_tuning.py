"""Fine-tuning from a Hugging Face folder by whole commands: everything, a part, adapters; then back to transformers."""

import hashlib
import io
import json
import signal

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from t5x_lite.checkpoints import find_checkpoint, load_parameters, saved_parameters

FINE_TUNE = """
include "sums.gin"
include "optimizers/adamw.gin"
INITIAL_CHECKPOINT_PATH = "base"
VOCABULARY = %INITIAL_CHECKPOINT_PATH
LEARNING_RATE = 0.05
WARMUP_STEPS = 2
EVAL_PERIOD = 12
T5Config.d_model = 32
T5Config.num_heads = 2
T5Config.head_dim = 16
T5Config.d_ff = 4096
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
"""
PROMPTS = ["1 plus 2?", "What is the sum of 3 and 4?", "5 and 5 are", "9 plus 0?"]


def write_base(folder) -> None:
    """A T5 v1.1 as transformers saves it, with a tokenizer of its own: random weights that write words."""
    text = [
        "What is the sum of 1 2 3 4 5 6 7 8 9 0 and plus are ?",
        "zero one two three four five six seven eight nine",
    ]
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20), model_writer=model, vocab_size=60, hard_vocab_limit=False, **ids
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    torch.manual_seed(0)
    settings = transformers.T5Config(
        vocab_size=192,  # the pieces, 100 sentinels, and some rows that are nothing
        d_model=32,
        num_heads=2,
        d_kv=16,
        d_ff=4096,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    base = transformers.T5ForConditionalGeneration(settings)
    head = torch.randn(192, 32) * 0.3
    head[pieces:], head[[0, 2]] = 0.0, 0.0  # the best of the pieces is above zero
    base.lm_head.weight = torch.nn.Parameter(head)
    base.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))


def contents(folder) -> dict[str, tuple[int, str]]:
    """{file: (when it was written, sha256)}"""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def generated(folder, prompts=PROMPTS) -> list[str]:
    """What transformers answers greedily."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    prompts = tokenizer(list(prompts), return_tensors="pt", padding=True)
    tokens = model.generate(**prompts, max_new_tokens=12, do_sample=False, num_beams=1)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def saved(run) -> dict[str, np.ndarray]:
    """The parameters in a run's latest checkpoint."""
    step = find_checkpoint(run)
    wanted = {name: (name, leaf) for name, leaf in saved_parameters(step).items()}
    return {name: np.asarray(leaf) for name, leaf in load_parameters(step, wanted).items()}


@pytest.fixture(scope="module")
def tuning(workplace):
    """The workplace with a base model, which is never written again, and configurations that start from it."""
    (workplace.path / "base").mkdir()
    write_base(workplace.path / "base")
    (workplace.path / "fine_tune.gin").write_text(FINE_TUNE)
    (workplace.path / "adapters.gin").write_text(
        'include "fine_tune.gin"\ninclude "lora.gin"\nLORA_RANK = 2\nLEARNING_RATE = 0.05\nWARMUP_STEPS = 2\n'
    )
    before = contents(workplace.path / "base")
    yield workplace
    assert contents(workplace.path / "base") == before


def train(workplace, gin_file: str, run: str, *overrides: str) -> str:
    return workplace.run("train", f"--gin_file={gin_file}", f"--gin.MODEL_DIR={run}", *overrides)[0]


@pytest.fixture(scope="module")
def adapted(tuning):
    """The folder of a run that trained adapters."""
    out = train(tuning, "adapters.gin", "adapted")
    assert "parameters from base, step 0" in out
    return tuning.path / "adapted"


@pytest.mark.slow
def test_all_weights_are_tuned_from_the_base(tuning):
    out = train(tuning, "fine_tune.gin", "full")
    assert "parameters from base, step 0" in out
    losses = [line["loss"] for line in tuning.metrics("full") if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    tensors = transformers.AutoModelForSeq2SeqLM.from_pretrained(tuning.path / "base").state_dict()
    weights = saved(tuning.path / "full")
    kernel = tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"].numpy().T
    assert weights["encoder/layers_0/mlp/wo/kernel"].shape == kernel.shape
    assert not np.array_equal(weights["encoder/layers_0/mlp/wo/kernel"], kernel)


@pytest.mark.slow
def test_a_frozen_encoder_stays_in_the_base_and_out_of_the_checkpoints(tuning):
    out = train(tuning, "fine_tune.gin", "frozen", "--gin.TRAINABLE=[('encoder/.*|token_embedder/.*', False)]")
    assert "trained " in out and "%)" in out
    weights = saved(tuning.path / "frozen")
    assert weights and all(name.startswith("decoder/") for name in weights)
    tuning.run("convert", "--from=frozen", "--to=frozen_hf", "--format=hf")
    base, whole = (
        transformers.AutoModelForSeq2SeqLM.from_pretrained(tuning.path / folder).state_dict()
        for folder in ("base", "frozen_hf")
    )
    for name, tensor in whole.items():
        assert torch.equal(tensor, base[name]) == name.startswith(("encoder", "shared", "decoder.embed")), name


@pytest.mark.slow
def test_a_run_of_adapters_is_small(tuning, adapted):
    weights = saved(adapted)
    assert {name.rsplit("/", 1)[1] for name in weights} == {"lora_a", "lora_b"}
    # Query and value of 3 attentions, both factors of rank 2.
    assert sum(leaf.size for leaf in weights.values()) == 3 * 2 * 2 * (32 + 32)
    assert size(adapted / "checkpoints") < size(tuning.path / "base") / 5


@pytest.mark.slow
def test_a_killed_run_of_adapters_goes_on_to_the_same_bits(tuning, adapted):
    process = tuning.start("train", "--gin_file=adapters.gin", "--gin.MODEL_DIR=killed")
    tuning.signal_after_step(process, "killed", 9, signal.SIGKILL)  # the save of step 8 has waited for that of step 4
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out = train(tuning, "adapters.gin", "killed")
    assert "resuming killed at step" in out
    assert tuning.metrics("killed") == tuning.metrics("adapted")
    expected = saved(adapted)
    found = saved(tuning.path / "killed")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_an_export_with_adapters_merged_answers_as_the_run_does(tuning, adapted):
    latest = find_checkpoint(adapted).name
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    out, _ = tuning.run("infer", "--model_dir=adapted", f"--step={latest}", *asked)
    answers = out.split("\n")[: len(PROMPTS)]
    tuning.run("convert", f"--from=adapted/checkpoints/{latest}", "--to=merged", "--format=hf")
    assert generated(tuning.path / "merged") == answers
    assert generated(tuning.path / "base") != answers


@pytest.mark.slow
def test_adapters_are_evaluated(tuning, adapted):
    (adapted / "eval" / "results.json").unlink()
    out, _ = tuning.run("evaluate", "--model_dir=adapted")
    results = json.loads((adapted / "eval" / "results.json").read_text())
    assert "sums" in out and results["tasks"]["sums"]["examples"] == 60
    trained = [line for line in tuning.metrics("adapted") if line["kind"] == "eval" and line["step"] == results["step"]]
    assert results["overall"]["unseen/exact_match"] == trained[0]["unseen/exact_match"]


# ---------------------------------------------------------------------- without network


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("HF_HUB_OFFLINE", "1", id="offline"),
        pytest.param("HF_ENDPOINT", "http://127.0.0.1:9", id="no network", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_cannot_be_fetched_is_one_line(tmp_path, workplace, monkeypatch, variable, value):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv(variable, value)
    before = contents(workplace.path)
    _, err = workplace.run("train", "--gin_file=gin/qa_flan_t5.gin", "--gin.MODEL_DIR=qa", status=2)
    own = [line for line in err.splitlines() if line.startswith("python -m t5x_lite.train: ")]
    assert len(own) == 1 and "Traceback" not in err, err
    assert f"'google/flan-t5-small': no local folder of that name, not in the Hugging Face cache ({cache})" in own[0]
    assert "set INITIAL_CHECKPOINT_PATH to a local folder with config.json and model.safetensors" in own[0]
    assert contents(workplace.path) == before and not list(cache.iterdir())
