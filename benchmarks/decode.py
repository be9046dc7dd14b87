"""Decoding against its peers in one call, on CPU, of one T5 v1.1 small: T5X's way, transformers (PyTorch), CTranslate2.

python -m benchmarks.decode [--rounds=7] [--case="greedy, batch 1"] [--record]

Random weights, the same in all; every engine is a process of its own on the same cores, and they take turns, so that
a change of the machine's speed meets all of them. Prompts of 128 tokens, answers of exactly 32: no end of sequence
comes. Needs `pip install ctranslate2` beside the test packages; T5X's way is benchmarks.t5x_style. Quote the ratios,
not the seconds. The bound is what float32 allows (`bound`), by a matrix product and by reading memory, both measured
here. `--record` keeps what was found (benchmarks.results).
"""

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.engines import Engine, in_process, in_turns, table_cells
from t5x_lite import config

CASES = {"greedy, batch 1": (1, 1), "greedy, batch 16": (16, 1), "beam 10, batch 1": (1, 10)}  # prompts, beams
_PROMPT, _ANSWER = 128, 32
_SIDE, _READ = 4096, 2**28  # of the matrices, and numbers read, that limits are measured by
_CORES = len(os.sched_getaffinity(0))


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--rounds", type=int, default=7)
        parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
        parser.add_argument("--record", action="store_true", help="into benchmarks/results/ and RESULTS.md")

    args = config.parse_flags(argv, __doc__, flags)
    with tempfile.TemporaryDirectory() as folder:
        in_process(_write_model, folder)
        engines = {name: Engine(serve, folder) for name, serve in ENGINES.items()}
        print(f"T5 v1.1 small, {_PROMPT} tokens in, {_ANSWER} out, {_CORES} cores, median of {args.rounds} (min)")
        limits = _limits(args.rounds)
        columns = [*engines, "t5x_lite, of the bound"]
        print(f"{'':20}" + "".join(f"{name:>26}" for name in columns))
        seconds, rows = {}, {}
        for case in args.case or CASES:
            prompts, beams = CASES[case]
            seconds[case] = in_turns(engines, args.rounds, _prompts(prompts), beams)
            share = statistics.median(seconds[case]["t5x_lite"]) / bound(prompts, beams, *limits)
            rows[case] = [*table_cells(seconds[case]), f"{share:.2f}"]
            print(f"{case:20}" + "".join(f"{cell:>26}" for cell in rows[case]), flush=True)
        for engine in engines.values():
            engine.close()
    if args.record:
        raw = seconds | dict(zip(("flops a second", "bytes a second"), limits, strict=True))
        results.record("decode", ["benchmarks.decode", *argv], columns, rows, raw)


def bound(prompts: int, beams: int, flops: float, bandwidth: float) -> float:
    """Seconds that a device of so many FLOP and bytes a second needs at least, in float32.

    The encoder and the projection of its output take their operations. A step takes its operations, or the time to read
    the decoder's weights, head included, the keys and values of all rows so far, and those of each prompt, which its
    beams share.
    """
    from t5x_lite.model.flops import forward_flops  # jax, which engines import after they have set it up

    config.load(["gin/models/flan_t5_small.gin"])
    model = config.build("T5Config")
    forward, rows = forward_flops(model, _PROMPT, 1), prompts * beams
    a_layer = model.num_heads * model.head_dim
    read = forward.encoder + forward.cross_kv + 4 * a_layer * model.num_encoder_layers * _PROMPT**2
    total = prompts * read / flops
    for step in range(1, _ANSWER + 1):
        positions = model.num_decoder_layers * a_layer * (rows * step + prompts * _PROMPT)  # of keys, and of values
        operations = rows * (forward.decoder + forward.head + 4 * a_layer * model.num_decoder_layers * (step + _PROMPT))
        weights = (forward.decoder + forward.head) / 2
        total += max(operations / flops, 4 * (weights + 2 * positions) / bandwidth)
    return total


def _limits(rounds: int) -> tuple[float, float]:
    """FLOP and bytes a second of this machine, at their best."""
    engine = {"limits": Engine(_torch_limits)}
    product, read = (min(in_turns(engine, rounds, what)["limits"]) for what in ("product", "read"))
    engine["limits"].close()
    limits = 2 * _SIDE**3 / product, 4 * _READ / read
    print(f"float32 products {limits[0] / 1e9:.0f} GFLOP/s, memory read at {limits[1] / 1e9:.0f} GB/s")
    return limits


def _torch_limits():
    import torch

    torch.set_num_threads(_CORES)
    side, numbers = torch.ones(_SIDE, _SIDE), torch.ones(_READ)
    return lambda what: side @ side if what == "product" else numbers.sum()


def _prompts(count: int) -> list[list[int]]:
    import numpy as np

    return np.random.default_rng(0).integers(3, 90, (count, _PROMPT)).tolist()


def _write_model(folder: str) -> None:
    """The model as transformers saves it, with a vocabulary that CTranslate2's converter asks for."""
    import ctranslate2
    import torch
    import transformers

    from t5x_lite.data import vocabularies
    from t5x_lite.interop.tokenizer import write_tokenizer

    torch.manual_seed(0)
    settings = transformers.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # pyrefly: ignore (no field of the class, which reads it all the same)
    )
    settings.decoder_start_token_id = 0
    model = transformers.T5ForConditionalGeneration(settings)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(32128, 512) * 512**-0.5)  # transformers 5 ties every T5
    model.save_pretrained(f"{folder}/model")
    texts = (f"{n} {n * n}" for n in range(2000))
    write_tokenizer(vocabularies.train_sentencepiece(texts, 300), Path(folder) / "model")
    ctranslate2.converters.TransformersConverter(f"{folder}/model").convert(f"{folder}/ctranslate2")


def _t5x_lite(folder: str):
    from t5x_lite import host

    os.environ["JAX_PLATFORMS"] = "cpu"
    host.keep_freed_memory()  # as `python -m t5x_lite.infer` does
    from t5x_lite import interop, partitioning
    from t5x_lite.decoding.generator import Generator
    from t5x_lite.decoding.options import Decoding

    source, partitioner = interop.open_source(f"{folder}/model"), partitioning.local_partitioner()
    params = interop.load_model(source, source.config, partitioner)
    generator = Generator(source.config, params, eos_id=-1, partitioner=partitioner)
    return lambda tokens, beams: generator.generate(tokens, Decoding(max_tokens=_ANSWER, beams=beams))


def _t5x_style(folder: str):
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    from benchmarks import t5x_style
    from t5x_lite import interop, partitioning

    source = interop.open_source(f"{folder}/model")
    model = dataclasses.replace(source.config, scan_layers=False)
    params = interop.load_model(source, model, partitioning.make_partitioner())

    def generate(tokens, beams):
        table = np.asarray(tokens, np.int32)
        jax.device_get(t5x_style.generate(model, params, table, max_tokens=_ANSWER, beams=beams, eos_id=-1))

    return generate


def _transformers(folder: str):
    import torch
    import transformers

    torch.set_num_threads(_CORES)
    model = transformers.T5ForConditionalGeneration.from_pretrained(f"{folder}/model").eval()
    length = {"max_new_tokens": _ANSWER, "min_new_tokens": _ANSWER, "eos_token_id": None, "pad_token_id": 0}

    def generate(tokens, beams):
        with torch.inference_mode():
            model.generate(torch.tensor(tokens), num_beams=beams, do_sample=False, **length)

    return generate


def _ctranslate2(compute_type: str, folder: str):
    import ctranslate2
    import transformers

    translator = ctranslate2.Translator(
        f"{folder}/ctranslate2", device="cpu", compute_type=compute_type, intra_threads=_CORES
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model")

    def generate(tokens, beams):
        prompts = [tokenizer.convert_ids_to_tokens(row) for row in tokens]
        translator.translate_batch(
            prompts, beam_size=beams, max_decoding_length=_ANSWER, min_decoding_length=_ANSWER, max_batch_size=16
        )

    return generate


def _ctranslate2_float32(folder: str):
    return _ctranslate2("float32", folder)


def _ctranslate2_int8(folder: str):
    return _ctranslate2("int8", folder)


ENGINES = {
    "t5x_lite": _t5x_lite,
    "T5X-style": _t5x_style,
    "transformers": _transformers,
    "CTranslate2 float32": _ctranslate2_float32,
    "CTranslate2 int8": _ctranslate2_int8,
}


if __name__ == "__main__":
    config.run_door(main)
