"""Writes a configuration's tasks as a packed cache, which trains without TensorFlow: docs/cache.md.

python -m t5x_lite.cache --gin_file=gin/qa.gin --output=DIR [--mixture=NAME] [--gin.NAME=VALUE ...] [Beam's flags]
python -m t5x_lite.train --gin_file=gin/qa.gin --gin.CACHE_DIR=DIR

Tasks whose part is there as it would be written now are kept. Other flags are Beam's: it runs on this machine
(--direct_num_workers=8 --direct_running_mode=multi_processing) or on --runner=DataflowRunner, FlinkRunner, SparkRunner.
"""

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--output", required=True, metavar="DIR", help="folder that all workers can write to")
        parser.add_argument("--mixture", metavar="NAME", help="default: the configuration's MIXTURE_OR_TASK_NAME")

    args = config.parse(argv, __doc__, flags, others="beam_flags")
    from t5x_lite.training.caching import write_cache

    chosen = {"mixture_or_task_name": args.mixture} if args.mixture else {}
    write_cache(config.build("train", **chosen), args.output, args.beam_flags)


if __name__ == "__main__":
    config.run_door(main)
