"""How long commands take to start: with nothing compiled before, and with what the last one compiled.

python -m benchmarks.startup [--rounds=3] [--record]

A new process each: `--help`; gin/qa.gin to its first step, as the run itself tells it, after a run that trained the
vocabulary; and one answer of that run, by the whole command's wall time. Cold and warm ones take turns. `--record`
keeps what was found (benchmarks.results).
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import results
from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--record", action="store_true", help="into benchmarks/results/ and RESULTS.md")

    args = config.parse_flags(argv, __doc__, flags)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _train(folder, "vocabulary", f"{folder}/programs")
        for number in range(args.rounds):
            kept = f"{folder}/programs_{number}"
            for state in ("cold", "warm"):
                trained = _train(folder, f"{number}_{state}", kept)
                found.setdefault(f"train, first step, {state}", []).append(trained)
                asked = ["infer", f"--model_dir={folder}/{number}_cold", "--prompt=What is the capital of France?"]
                found.setdefault(f"infer, one answer, {state}", []).append(_seconds(asked, f"{kept}_of_infer"))
            found.setdefault("train --help", []).append(_seconds(["train", "--help"], kept))
    columns = {"median, s": statistics.median, "least": min, "most": max}
    rows = {name: [f"{of(found[name]):.2f}" for of in columns.values()] for name in sorted(found)}
    print(f"{'':30}" + "".join(f"{column:>10}" for column in columns))
    for name, cells in rows.items():
        print(f"{name:30}" + "".join(f"{cell:>10}" for cell in cells))
    if args.record:
        results.record("startup", ["benchmarks.startup", *argv], list(columns), rows, found)


def _train(folder: str, name: str, kept: str) -> float:
    """Seconds from the start to the end of the first step, as the run says."""
    settings = {"MODEL_DIR": f"{folder}/{name}", "TRAIN_STEPS": 2, "WARMUP_STEPS": 1, "EVAL_EXAMPLES": 1}
    told = _run(["train", "--gin_file=gin/qa.gin", *(f"--gin.{key}={value}" for key, value in settings.items())], kept)
    return float(re.search(r"first step done ([\d.]+) s", told)[1])


def _seconds(command: list[str], kept: str) -> float:
    began = time.perf_counter()
    _run(command, kept)
    return time.perf_counter() - began


def _run(command: list[str], kept: str) -> str:
    """What the command prints; compiled programs are in the folder `kept`."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": kept}
    command = [sys.executable, "-m", f"t5x_lite.{command[0]}", *command[1:]]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    config.run_door(main)
