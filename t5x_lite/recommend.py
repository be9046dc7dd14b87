"""Recommends items of a run's catalogue: to a known user, after a history, or for stated interests.

python -m t5x_lite.recommend --model_dir=runs/recommend --user=42
python -m t5x_lite.recommend --model_dir=runs/recommend --history "Toy Story (1995)" --history "Heat" --evidence
python -m t5x_lite.recommend --model_dir=runs/recommend --input=users.jsonl --output=lists.jsonl
python -m t5x_lite.recommend --model_dir=runs/recommend --interests "comedies of the 1990s" --filter "year>=1995" --json
"""

from t5x_lite import doors, host
from t5x_lite.errors import UserError


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run folder of gin/recommend.gin")
        parser.add_argument("--step", type=int, help="checkpoint; default: the best one, else the latest")
        who = parser.add_argument_group("for whom")
        who.add_argument("--user", help="id of a user in the training data")
        who.add_argument("--history", action="append", default=[], help="repeatable: title or id:ID, oldest first")
        who.add_argument("--interests", default="", help="what somebody says, like 'romance from the seventies'")
        many = parser.add_argument_group("for many, in several processes where there are")
        many.add_argument("--input", metavar="FILE", help=".jsonl or .csv with user, or history, interests, filters")
        many.add_argument("--output", metavar="FILE", help=".jsonl; killed, the same command goes on with it")
        what = parser.add_argument_group("what")
        what.add_argument("--k", type=int, default=10, help="items in the list; default: 10")
        what.add_argument("--filter", action="append", default=[], dest="filters", help="repeatable: year>=1990")
        what.add_argument("--exclude", action="append", default=[], help="repeatable: title or id:ID not to come")
        what.add_argument("--include_seen", action="store_true", help="what was taken may come again")
        what.add_argument("--evidence", action="store_true", help="name the history entries that speak for each item")
        what.add_argument("--json", action="store_true", help="print one JSON object")
        doors.process_flags(parser)

    args = doors.parse_flags(argv, __doc__, flags)
    host.keep_compiled_programs()
    if args.input or args.output:
        return _for_many(args)
    from t5x_lite.recommendation import printing
    from t5x_lite.recommendation.recommender import Recommender

    found = Recommender.load(args.model_dir, args.step).recommend(
        user=args.user,
        history=args.history,
        interests=args.interests,
        k=args.k,
        exclude=args.exclude,
        exclude_seen=not args.include_seen,
        filters=args.filters,
        evidence=args.evidence,
    )
    print(printing.as_json(found) if args.json else printing.as_table(found))


def _for_many(args) -> None:
    if not (args.input and args.output):
        raise UserError("--input and --output belong together: both name files")
    for name in ("user", "history", "interests", "filters", "exclude", "include_seen", "evidence", "json"):
        if getattr(args, name):
            flag = "--filter" if name == "filters" else f"--{name}"
            raise UserError(f"{flag} is for one list; --input has the fields of each of its records")
    from t5x_lite.recommendation.lists import recommend_file

    recommend_file(args.model_dir, args.input, args.output, k=args.k, step=args.step)


if __name__ == "__main__":
    doors.run_door(main)
