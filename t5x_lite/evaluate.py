"""Evaluates a run: every task, wordings seen and unseen apart. Writes eval/results.json and report.html.

python -m t5x_lite.evaluate --model_dir=runs/qa [--split=validation] [--step=N]
python -m t5x_lite.evaluate --model_dir=runs/recommend --split=test --sasrec --recs_out=recs.jsonl

A run that recommends is then compared with counting, and with SASRec if asked, on the same questions.
"""

from t5x_lite import config, doors, host


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run folder")
        parser.add_argument("--split", help="split of the tasks; default: the one that training evaluated")
        parser.add_argument("--step", type=int, help="checkpoint; default: the best one, else the latest")
        parser.add_argument("--max_examples", type=int, help="at most this many examples a task; default: all")
        parser.add_argument("--sasrec", action="store_true", help="train SASRec too, for the comparison; minutes")
        parser.add_argument("--recs_out", metavar="FILE", help=".jsonl: the ten best items for each user")
        doors.process_flags(parser)

    args = config.parse_flags(argv, __doc__, flags)
    host.keep_freed_memory()
    host.keep_compiled_programs()
    config.load_run(args.model_dir)
    from t5x_lite import processes
    from t5x_lite.training import evaluation

    run = config.build("train")
    compared = bool(run.items or args.sasrec or args.recs_out)
    if compared:
        evaluation.check_comparison(run, args.split, args.recs_out)
    with processes.together("start all of them again with the same command"):
        results = evaluation.evaluate_run(run, split=args.split, step=args.step, max_examples=args.max_examples)
        processes.say(evaluation.table(results))
        if compared:
            found = evaluation.compare_recommenders(run, results, sasrec=args.sasrec, lists_file=args.recs_out)
            processes.say(f"\n{found}")


if __name__ == "__main__":
    config.run_door(main)
