"""Converts a model: Hugging Face, T5X and t5x_lite in, Hugging Face and t5x_lite out.

python -m t5x_lite.convert --from=google/flan-t5-small --to=models/flan_t5_small
python -m t5x_lite.convert --from=runs/qa --to=exported --format=hf
python -m t5x_lite.convert --from=t5x/checkpoint_1198000 --vocabulary=google/flan-t5-small --to=models/flan_t5_small
"""

from t5x_lite import config


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--from", dest="source", required=True, help="folder, or a name on the Hugging Face hub")
        parser.add_argument("--to", required=True, help="new folder")
        parser.add_argument("--format", choices=["hf", "t5x_lite"], default="t5x_lite", help="default: t5x_lite")
        parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights; default: as stored")
        parser.add_argument(
            "--vocabulary", help="'bytes', a .model file, or a Hugging Face name; default: the source's"
        )
        parser.add_argument("--new_tokens", metavar="FILE", help="tokens to append, one a line: TOKEN [tab TEXT]")

    args = config.parse_flags(argv, __doc__, flags)
    from t5x_lite import interop

    source = interop.open_source(args.source, "--from")
    vocabulary = interop.open_vocabulary(args.vocabulary, "--vocabulary") if args.vocabulary else source.vocabulary()
    new_tokens = interop.NewTokens.from_file(args.new_tokens) if args.new_tokens else None
    print(
        interop.convert(
            source, args.to, vocabulary=vocabulary, format=args.format, dtype=args.dtype, new_tokens=new_tokens
        )
    )


if __name__ == "__main__":
    config.run_door(main)
