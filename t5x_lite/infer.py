"""Asks a trained run; one answer a line.

python -m t5x_lite.infer --model_dir=runs/qa --prompt "What is the capital of Japan?"
python -m t5x_lite.infer --model_dir=runs/qa < questions.txt
"""

import sys

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run folder")
        parser.add_argument("--prompt", action="append", help="a question; repeatable; default: the lines of stdin")
        parser.add_argument("--step", type=int, help="checkpoint; default: the best one, else the latest")
        parser.add_argument("--max_tokens", type=int, help="longest answer; default: the run's target length")

    args = config.parse_flags(argv, __doc__, flags)
    from t5x_lite.decoding.engine import Engine

    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin]
    options = {"max_tokens": args.max_tokens} if args.max_tokens else {}
    for answer in Engine.load(args.model_dir, args.step).generate(prompts, **options):
        print(answer.text)


if __name__ == "__main__":
    config.run_door(main)
