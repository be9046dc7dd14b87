"""Trains a model, or goes on with a run.

python -m t5x_lite.train --gin_file=gin/qa.gin [--gin.NAME=VALUE ...] [--dry_run]
"""

import signal
import sys

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--dry_run", action="store_true", help="print the plan and stop; writes nothing")

    args = config.parse(argv, __doc__, flags)
    from t5x_lite.training.loop import NonFiniteLoss, train

    try:
        finished = train(config.build("train"), dry_run=args.dry_run)
    except NonFiniteLoss as stop:
        sys.exit(f"python -m t5x_lite.train: {stop}")
    if not finished:
        # As of a program that the signal ended: what starts it again must not take the run for finished.
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    config.run_door(main)
