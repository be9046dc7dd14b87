"""Evaluates a run: every task, wordings seen and unseen apart. Writes eval/results.json and report.html.

python -m t5x_lite.evaluate --model_dir=runs/qa [--split=validation] [--step=N]
"""

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run folder")
        parser.add_argument("--split", help="split of the tasks; default: the one that training evaluated")
        parser.add_argument("--step", type=int, help="checkpoint; default: the best one, else the latest")
        parser.add_argument("--max_examples", type=int, help="at most this many examples a task; default: all")

    args = config.parse_flags(argv, __doc__, flags)
    config.load_run(args.model_dir)
    from t5x_lite.training.evaluation import evaluate_run, table

    results = evaluate_run(config.build("train"), split=args.split, step=args.step, max_examples=args.max_examples)
    print(table(results))


if __name__ == "__main__":
    config.run_door(main)
