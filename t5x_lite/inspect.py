"""Shows what is registered, what a model is made of, and what a checkpoint holds.

python -m t5x_lite.inspect tasks [NAME] [--module=my_tasks] [--model_dir=runs/qa]
python -m t5x_lite.inspect model --gin_file=gin/models/flan_t5_small.gin
python -m t5x_lite.inspect checkpoint runs/qa [--step=N]
"""

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        kinds = parser.add_subparsers(dest="kind", required=True)
        tasks = kinds.add_parser("tasks", help="registered tasks, or the examples of one")
        tasks.add_argument("name", nargs="?")
        tasks.add_argument("--module", action="append", help="module that registers tasks; default: all in ./tasks")
        tasks.add_argument("--model_dir", help="show tokens of this run's vocabulary and lengths")
        tasks.add_argument("--split", default="train")
        model = kinds.add_parser("model", help="configuration, shapes and parameter counts")
        model.add_argument("--gin_file", action="append", required=True, metavar="FILE")
        checkpoint = kinds.add_parser("checkpoint", help="what a step holds and where it came from")
        checkpoint.add_argument("model_dir")
        checkpoint.add_argument("--step", type=int)

    args = config.parse_flags(argv, __doc__, flags)
    if args.kind == "checkpoint":
        from t5x_lite.checkpoints import describe

        print(describe(args.model_dir, args.step))
    elif args.kind == "model":
        from t5x_lite.model import describe_model

        config.load(args.gin_file)
        print(describe_model(config.build("T5Config")))
    else:
        from t5x_lite.data import preview

        preview.import_tasks(args.module)
        print(preview.examples(args.name, args.split, args.model_dir) if args.name else preview.listing())


if __name__ == "__main__":
    config.run_door(main)
