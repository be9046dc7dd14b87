"""How long recommendations of a trained run take: one request at a time, and all users as batches.

python -m benchmarks.recommend --model_dir=runs/recommend [--rounds=200]

After `warm_up`, each kind of request is timed over users drawn in turn, with what Python does around the model. The
number of programs compiled after the warm-up is printed: it should be 0, but for all users as batches. Peer: the
popularity list, which needs no model.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable

from t5x_lite import doors

_AT_ONCE = 8  # rows of a batch: what evidence asks beside a request


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--model_dir", required=True, help="run of gin/recommend.gin")
        parser.add_argument("--rounds", type=int, default=200)

    args = doors.parse_flags(argv, __doc__, flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from t5x_lite.recommendation.recommender import Recommender, Request

    began = time.perf_counter()
    recommender = Recommender.load(args.model_dir)
    loaded = time.perf_counter() - began
    generator = recommender.engine.generator
    whole, generator.max_batch = generator.max_batch, _AT_ONCE
    warm = recommender.warm_up(most_requests=_AT_ONCE)
    knowledge = recommender.knowledge
    users = itertools.cycle(knowledge.users)
    titles = knowledge.catalogue.titles
    attribute, values = next(iter(knowledge.catalogue.attributes.items()), (None, ()))
    print(f"{len(knowledge.users)} users, {len(titles)} items; loaded in {loaded:.1f} s, warmed up in {warm:.1f} s")
    kinds: dict[str, Callable] = {
        "a known user": lambda: recommender.recommend(user=next(users)),
        "a history of titles": lambda: recommender.recommend(
            history=[f"id:{id}" for id in knowledge.catalogue.ids[:9]]
        ),
        "popularity (no model)": recommender.recommend,
    }
    if attribute:
        common = statistics.mode(value for row in values for value in row)
        kinds["a user, with a filter"] = lambda: recommender.recommend(
            user=next(users), filters=[f"{attribute}={common}"]
        )
    if "interests" in knowledge.prompts:
        kinds["stated interests"] = lambda: recommender.recommend(interests="something good")
    kinds["a user, with evidence"] = lambda: recommender.recommend(user=next(users), evidence=True)
    print(f"{'milliseconds':24}{'p50':>8}{'p99':>8}{'compiled':>10}")
    for name, ask in kinds.items():
        before = recommender.compile_count
        rounds = args.rounds if "evidence" not in name else max(args.rounds // 10, 3)
        times = sorted(_milliseconds(ask) for _ in range(rounds))
        p99 = times[min(int(0.99 * len(times)), len(times) - 1)]
        print(f"{name:24}{statistics.median(times):8.2f}{p99:8.2f}{recommender.compile_count - before:10d}")
    generator.max_batch = whole
    requests = [Request(history=history.tolist()) for history in knowledge.histories]
    first, again = (_milliseconds(lambda: recommender.answer(requests)) for _ in range(2))
    print(f"all {len(requests)} users, top 10: {first / 1e3:.2f} s with compilation, {again / 1e3:.2f} s without")


def _milliseconds(ask: Callable) -> float:
    began = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    doors.run_door(main)
