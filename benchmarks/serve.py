"""A server of recommendations under load, over loopback: latency, saturation, overload, memory, right lists, the peer.

python -m benchmarks.serve --model_dir=runs/recommend                   starts the server, waits until ready, measures
python -m benchmarks.serve --model_dir=runs/recommend --check           10,000 lists against a recount in plain Python
python -m benchmarks.serve --model_dir=runs/recommend --peer            transformers and FastAPI beside it, in turn
python -m benchmarks.serve --model_dir=runs/recommend --soak_minutes=10 memory and compilations over time
python -m benchmarks.serve --model_dir=runs/recommend --url=http://127.0.0.1:8000   a server that runs already

The client is a process of its own on the same cores; its own ceiling is printed first. Requests are drawn: histories of
up to 40 items, a third of them with a filter or exclusions, and some stated interests where the run reads those. At a
given rate arrivals are Poisson, and times count from when a request was due. `late` is the share of the client in that,
99th percentile. "compiled" is what the server compiled meanwhile.
"""

import asyncio
import contextlib
import csv
import json
import operator
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.serve_load import (
    Client,
    Measured,
    ceiling,
    client_of,
    closed_loop,
    get,
    merged,
    metric,
    open_loop,
    request_bytes,
    run,
    server,
)
from t5x_lite import doors

_SATURATING = (8, 16, 32)  # connections; the best of them counts
_ROUNDS = 3  # of ours and the peer's in turn
_COMPARED = 20  # lists of ours and the peer's
_SAMPLE_SECONDS = 5
_CONNECTIONS = 16  # of the lists, and of ours beside the peer


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument(
            "--model_dir", required=True, help="run of gin/recommend.gin; its items.csv names the items"
        )
        parser.add_argument("--url", help="of a server that runs already; default: one is started")
        parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
        parser.add_argument("--rate", type=float, default=50, help="requests a second of the open loop and the soak")
        what = parser.add_argument_group("instead of the usual measurements")
        what.add_argument("--check", action="store_true", help="the lists themselves")
        what.add_argument("--lists", type=int, default=10_000, help="how many --check asks for")
        what.add_argument("--peer", action="store_true", help="ratio to benchmarks/serve_peer.py")
        what.add_argument("--soak_minutes", type=float, default=0, help="memory over so many minutes")

    args = doors.parse_flags(argv, __doc__, flags)
    items = Items(Path(args.model_dir) / "items")
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(server("t5x_lite.serve", f"--model_dir={args.model_dir}"))
        print(f"load average of the last minute {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
        if args.check:
            run(check(url, items, args.lists))
        elif args.peer:
            peer(url, items, args.model_dir, args.seconds)
        elif args.soak_minutes:
            run(soak(url, items, args.rate, 60 * args.soak_minutes))
        else:
            found = ceiling()
            print(f"the client alone: {found.rate:,.0f} requests/s, p50 {found.milliseconds(0.5):.2f} ms")
            run(usual(url, items, args.rate, args.seconds))


# ---------------------------------------------------------------------- what is asked

_SIGNS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Filter(NamedTuple):
    """On one attribute; read as the documentation says, and by no code of the server's."""

    attribute: str
    sign: str
    value: str

    def holds(self, values: set[str]) -> bool:
        if self.sign in ("=", "!="):
            return (self.value in values) == (self.sign == "=")
        return any(_SIGNS[self.sign](int(each), int(self.value)) for each in values if each.isdecimal())


class Items:
    """The items and users of a run, out of its files."""

    def __init__(self, folder: Path):
        import numpy as np

        with (folder / "items.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        self.ids = [row["item"] for row in rows]
        self.titles = {row["item"]: row["title"] for row in rows}
        names = [name for name in rows[0] if name not in ("item", "title")]
        self.attributes = {
            name: {row["item"]: set(filter(None, row[name].split("|"))) for row in rows} for name in names
        }
        with np.load(folder / "histories.npz") as arrays:
            users, ends = json.loads(arrays["users"].tobytes()), np.cumsum(arrays["lengths"])[:-1]
            taken = np.split(arrays["items"], ends)[: len(users)]
        self.histories = {user: [self.ids[item] for item in row] for user, row in zip(users, taken, strict=True)}

    def some(self, rng: random.Random, fewest: int, most: int) -> list[str]:
        return rng.sample(self.ids, min(rng.randint(fewest, most), len(self.ids)))

    def filter(self, rng: random.Random) -> Filter:
        """Of an attribute and a value that some item has."""
        name = rng.choice(list(self.attributes))
        value = rng.choice(sorted(set().union(*self.attributes[name].values())))
        signs = ["=", "!=", *_SIGNS] if value.isdecimal() else ["=", "!="]
        return Filter(name, rng.choice(signs), value)

    def passing(self, chosen: Filter) -> set[str]:
        return {item for item, values in self.attributes[chosen.attribute].items() if chosen.holds(values)}


def as_ids(items: Sequence[str]) -> list[str]:
    return [f"id:{item}" for item in items]


def histories(items: Items, path: str = "/v1/recommend", seed: int = 0) -> Iterator[bytes]:
    """Endless requests of ten items after a history, which the peer understands too."""
    rng = random.Random(seed)
    while True:
        yield request_bytes("POST", path, {"history": as_ids(items.some(rng, 1, 40)), "k": 10})


def mixed(items: Items, info: Mapping, seed: int = 0) -> Iterator[bytes]:
    """Endless requests of ten items, of every kind that the run answers."""
    rng = random.Random(seed)
    while True:
        body = {"history": as_ids(items.some(rng, 1, 40)), "k": 10}
        kind = rng.random()
        if kind < 0.15 and items.attributes:
            body["filters"] = ["".join(items.filter(rng))]
        elif kind < 0.3:
            body["exclude"] = as_ids(items.some(rng, 1, 100))
        elif kind < 0.4 and "interests" in info["templates"]:
            body = {"interests": "something good", "k": 10}
        yield request_bytes("POST", "/v1/recommend", body)


# ---------------------------------------------------------------------- measurements


def print_header() -> None:
    print(f"{'':26}{'requests':>9}{'200 a s':>9}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}{'p99, 200':>10}", end="")
    print(f"{'late':>7}{'compiled':>10}  statuses (times in ms)")


def print_row(name: str, found: Measured, compiled: int | str = "") -> None:
    times = "".join(f"{found.milliseconds(quantile):8.1f}" for quantile in (0.5, 0.9, 0.99, 1))
    statuses = ", ".join(f"{status or 'broken'}: {count}" for status, count in found.statuses.items())
    print(
        f"{name:26}{len(found.sent):9,}{found.rate:9.1f}{times}{found.milliseconds(0.99, accepted=True):10.1f}", end=""
    )
    print(f"{found.late_milliseconds(0.99):7.1f}{compiled:10}  {statuses}", flush=True)


async def compilations(client: Client) -> int:
    return int(await metric(client, "t5x_lite_compilations"))


async def usual(url: str, items: Items, rate: float, seconds: float) -> None:
    """One caller, `rate` a second, as fast as it goes, and three times that."""
    async with client_of(url) as client:
        asked = mixed(items, json.loads(await get(client, "/v1/info")))
        print_header()

        async def row(name: str, measurement) -> Measured:
            before = await compilations(client)
            found = await measurement
            print_row(name, found, await compilations(client) - before)
            return found

        await row("1 connection", closed_loop(client, asked, 1, seconds))
        await row(f"{rate:g} a second", open_loop(client, asked, rate, seconds))
        saturated = 0.0
        for connections in _SATURATING:
            found = await row(f"{connections} connections", closed_loop(client, asked, connections, seconds))
            saturated = max(saturated, found.rate)
        await row(f"{3 * saturated:.0f} a second (overload)", open_loop(client, asked, 3 * saturated, seconds))
        await row(f"{rate:g} a second, after it", open_loop(client, asked, rate, seconds))


async def soak(url: str, items: Items, rate: float, seconds: float) -> None:
    """Memory and compilations while requests come at `rate`, and the slope of the second half's memory."""
    async with client_of(url) as client:
        asked = mixed(items, json.loads(await get(client, "/v1/info")))
        before = await compilations(client)
        load = asyncio.create_task(open_loop(client, asked, rate, seconds))
        sizes = []
        while not load.done():
            sizes.append(await metric(client, "process_resident_memory_bytes") / 2**20)
            await asyncio.wait([load], timeout=_SAMPLE_SECONDS)
        print_header()
        print_row(f"{rate:g} a second", load.result(), await compilations(client) - before)
        half = sizes[len(sizes) // 2 :]
        per_minute = statistics.linear_regression(range(len(half)), half).slope * 60 / _SAMPLE_SECONDS
        at_times = ", ".join(f"{sizes[len(sizes) * tenth // 10]:.0f}" for tenth in range(10))
        print(f"resident memory, MiB, at each tenth of the time: {at_times}, {sizes[-1]:.0f} at the end")
        print(f"slope over the second half: {per_minute:+.3f} MiB a minute")


# ---------------------------------------------------------------------- the lists


async def check(url: str, items: Items, lists: int) -> None:
    """Asks at random, and recounts what each list may hold. Ends with status 1 where a list is wrong."""
    rng = random.Random(0)
    wrong: list[str] = []
    lengths = {"whole": 0, "short": 0, "empty": 0}
    async with client_of(url) as client:
        info = json.loads(await get(client, "/v1/info"))
        before = await compilations(client)
        numbers = iter(range(lists))

        async def caller():
            for _ in numbers:
                body, left = question(items, info, rng)
                answer = await client.ask(request_bytes("POST", "/v1/recommend", body))
                fault = what_is_wrong(answer.status, answer.body, items, body["k"], left)
                if fault:
                    wrong.append(f"{fault}: {json.dumps(body)[:300]} -> {answer.body[:300]!r}")
                lengths["whole" if len(left) >= body["k"] else "short" if left else "empty"] += 1

        await asyncio.gather(*(caller() for _ in range(_CONNECTIONS)))
        meanwhile = await compilations(client) - before
    counts = ", ".join(f"{count:,} {name}" for name, count in lengths.items())
    print(f"{lists:,} lists ({counts}): {len(wrong)} wrong, {meanwhile} programs compiled")
    print("\n".join(wrong[:5]))
    if wrong:
        sys.exit(1)


def question(items: Items, info: Mapping, rng: random.Random) -> tuple[dict, set[str]]:
    """A request drawn from all that may be asked, and the items that are left for it."""
    body: dict = {"k": rng.choice([1, 5, 10, 10, 10, 20, info["limits"]["k"]])}
    left, taken = set(items.ids), []
    match rng.randrange(8):
        case 0:
            user = rng.choice(list(items.histories))
            body["user"], taken = user, items.histories[user]
        case 1 if "interests" in info["templates"]:
            body["interests"] = "something good"
        case 2:
            pass  # nothing is known: the fallback has the same promises
        case 3:
            taken = items.some(rng, 1, info["limits"]["history"])
        case _:
            taken = items.some(rng, 1, 60)
    if taken and "user" not in body:
        body["history"] = as_ids(taken)
    if rng.random() < 0.2:
        body["exclude_seen"] = False
    else:
        left -= set(taken)
    if rng.random() < 0.5 and items.attributes:
        filters = [items.filter(rng) for _ in range(rng.randint(1, 3))]
        body["filters"] = ["".join(each) for each in filters]
        left = left.intersection(*map(items.passing, filters))
    if rng.random() < 0.3:
        candidates = items.some(rng, 1, rng.choice([5, 50, 500]))
        body["candidates"] = as_ids(candidates)
        left &= set(candidates)
    if rng.random() < 0.5:
        excluded = items.some(rng, 1, rng.choice([10, 100, 1000]))
        body["exclude"] = as_ids(excluded)
        left -= set(excluded)
    return body, left


def what_is_wrong(status: int, content: bytes, items: Items, k: int, left: set[str]) -> str | None:
    """What a list has that it must not have, or lacks; None of a right one."""
    if status != 200:
        return f"status {status}"
    listed = json.loads(content)["items"]
    found = [each["item"] for each in listed]
    scores = [each["score"] for each in listed]
    if len(found) != min(k, len(left)):
        return f"{len(found)} items where {len(left)} are left for k = {k}"
    if len(set(found)) != len(found):
        return "an item is there twice"
    if not left.issuperset(found):
        return f"{sorted(set(found) - left)} must not come"
    if any(items.titles[each["item"]] != each["title"] for each in listed):
        return "an item has another's title"
    if [each["rank"] for each in listed] != list(range(1, len(found) + 1)) or scores != sorted(scores, reverse=True):
        return "ranks or scores are out of order"
    return None


# ---------------------------------------------------------------------- the peer


def peer(url: str, items: Items, model_dir: str, seconds: float) -> None:
    """Ours and transformers' on the same weights, items and cores, in turn.

    The peer as one process whose torch has all cores, and as one process for each core.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--exported={export(model_dir, folder)}", f"--items={model_dir}/items"]
        for processes in sorted({1, cores}):
            print(f"\npeer: processes {processes}, threads of torch in each {cores // processes}")
            with contextlib.ExitStack() as stack:
                peers = [
                    stack.enter_context(server("benchmarks.serve_peer", *flags, f"--threads={cores // processes}"))
                    for _ in range(processes)
                ]
                run(_compare(url, peers, items, seconds))


def export(model_dir: str, folder: str) -> str:
    """The step of a run that a server opens, as a folder of transformers."""
    from t5x_lite.decoding.engine import chosen_step

    step = f"{model_dir}/checkpoints/{chosen_step(model_dir)}"
    command = [sys.executable, "-m", "t5x_lite.convert", f"--from={step}", f"--to={folder}/exported", "--format=hf"]
    subprocess.run(command, check=True)
    return f"{folder}/exported"


async def _compare(url: str, peers: Sequence[str], items: Items, seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ours = [await stack.enter_async_context(client_of(url))]
        theirs = [await stack.enter_async_context(client_of(each)) for each in peers]
        sides = {"ours": (ours, "/v1/recommend"), "peer": (theirs, "/recommend")}
        same = [await _listed(clients[0], histories(items, path)) for clients, path in sides.values()]
        print(f"{sum(map(operator.eq, *same))} of {_COMPARED} lists are the same")
        print_header()
        latency: dict[str, list[float]] = {name: [] for name in sides}
        saturated: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(_ROUNDS):
            for name, (clients, path) in sides.items():
                one = await closed_loop(clients[0], histories(items, path, number), 1, seconds / _ROUNDS)
                print_row(f"{name}, 1 connection", one)
                latency[name].append(one.milliseconds(0.5))
                each = _CONNECTIONS // len(clients)
                loops = [
                    closed_loop(client, histories(items, path, number), each, seconds / _ROUNDS) for client in clients
                ]
                all_of_them = merged(await asyncio.gather(*loops))
                print_row(f"{name}, {_CONNECTIONS} connections", all_of_them)
                saturated[name].append(all_of_them.rate)
    p50, rate = ({name: statistics.median(of[name]) for name in sides} for of in (latency, saturated))
    print(f"p50 of 1 connection: {p50['ours']:.2f} ms, peer {p50['peer']:.2f}: ratio {p50['peer'] / p50['ours']:.1f}")
    print(f"requests/s: {rate['ours']:.0f}, peer {rate['peer']:.0f}: ratio {rate['ours'] / rate['peer']:.1f}")


async def _listed(client: Client, asked: Iterator[bytes]) -> list[list[str]]:
    """The items of the first lists."""
    answers = [await client.ask(next(asked)) for _ in range(_COMPARED)]
    return [[each["item"] for each in json.loads(answer.body)["items"]] for answer in answers]


if __name__ == "__main__":
    doors.run_door(main)
