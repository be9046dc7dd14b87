"""Trains a model, or goes on with a run; docs/long_runs.md.

python -m t5x_lite.train --gin_file=gin/qa.gin [--gin.NAME=VALUE ...] [--dry_run] [--profile=10:13]
"""

import signal
import sys

from t5x_lite import config, doors, host


def main(argv: list[str]) -> None:
    host.keep_freed_memory()
    host.keep_compiled_programs()  # reading gin files imports JAX

    def flags(parser):
        parser.add_argument("--dry_run", action="store_true", help="print the plan and stop; writes nothing")
        parser.add_argument("--profile", metavar="START:STOP", help="trace the steps after START, up to STOP")
        doors.process_flags(parser)

    args = config.parse(argv, __doc__, flags)
    from t5x_lite import processes
    from t5x_lite.training.loop import NonFiniteLoss, train
    from t5x_lite.training.profile import parse_steps

    profile = parse_steps(args.profile)
    run = config.build("train")
    try:
        with processes.together(f"start all of them again with the same command: {run.model_dir} goes on"):
            finished = train(run, dry_run=args.dry_run, profile=profile)
    except NonFiniteLoss as stop:
        sys.exit(f"python -m t5x_lite.train: {stop}")
    if not finished:
        # As of a program that the signal ended: what starts it again must not take the run for finished.
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    config.run_door(main)
