"""Servers, and requests to them over loopback: a bare HTTP/1.1 client, fast enough not to be what is measured.

python -m benchmarks.serve_load     prints what the client reaches against a server that only writes fixed bytes
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from t5x_lite import doors
from t5x_lite.errors import UserError

FAILED = 0  # in place of a status: the connection broke

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_FIXED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\n\r\n" + b" " * 1024
_READY_SECONDS = 300
_MOST_OPEN = 1024  # connections of an open loop; further arrivals wait, and their waiting counts

Bodies = Iterator[bytes]  # whole requests, head and body


class Answer(NamedTuple):
    status: int
    body: bytes


class Sent(NamedTuple):
    """One request: seconds from when it was meant to be sent to its last byte, and how much of that was ours."""

    status: int
    seconds: float
    late: float


@dataclasses.dataclass
class Measured:
    """What one loop saw, in so many seconds."""

    sent: list[Sent]
    seconds: float

    @property
    def statuses(self) -> dict[int, int]:
        return dict(sorted(collections.Counter(each.status for each in self.sent).items()))

    @property
    def rate(self) -> float:
        """Answers of 200 a second."""
        return self.statuses.get(200, 0) / self.seconds

    def milliseconds(self, quantile: float, *, accepted: bool = False) -> float:
        """Of the time to answer, over all requests or those of status 200; nan of none."""
        times = sorted(each.seconds for each in self.sent if each.status == 200 or not accepted)
        return 1e3 * times[min(int(quantile * len(times)), len(times) - 1)] if times else float("nan")

    def late_milliseconds(self, quantile: float) -> float:
        late = sorted(each.late for each in self.sent)
        return 1e3 * late[min(int(quantile * len(late)), len(late) - 1)] if late else float("nan")


def merged(loops: Sequence[Measured]) -> Measured:
    """Loops that ran at the same time, as one."""
    return Measured([sent for each in loops for sent in each.sent], max(each.seconds for each in loops))


def request_bytes(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode() + content


class _Connection(asyncio.Protocol):
    """One request at a time; answers must name their length."""

    def __init__(self):
        self._received = b""
        self._waiting: asyncio.Future | None = None
        self.open = True

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received += data
        end = self._received.find(_HEAD_END)
        if end < 0:
            return
        head = self._received[:end].lower() + b"\r\n"
        if _LENGTH not in head:
            self._transport.close()
            return
        length = int(head.split(_LENGTH, 1)[1].split(b"\r\n", 1)[0])
        start = end + len(_HEAD_END)
        if len(self._received) >= start + length:
            answer = Answer(int(head[9:12]), self._received[start : start + length])
            self._received = b""
            self.open = self.open and b"\r\nconnection: close" not in head
            self._finish(answer)

    def connection_lost(self, exc):
        self.open = False
        self._finish(Answer(FAILED, str(exc).encode()))

    def _finish(self, answer: Answer) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting and not waiting.done():
            waiting.set_result(answer)

    async def ask(self, request: bytes) -> Answer:
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        self._transport.close()


class Client:
    """Connections to one server, kept open and used again."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port or 80
        self._idle: list[_Connection] = []
        self._slots = asyncio.Semaphore(_MOST_OPEN)

    async def ask(self, request: bytes) -> Answer:
        async with self._slots:
            while self._idle and not self._idle[-1].open:
                self._idle.pop()
            try:
                connection = self._idle.pop() if self._idle else await self._connect()
            except OSError as error:
                return Answer(FAILED, str(error).encode())
            answer = await connection.ask(request)
            if connection.open:
                self._idle.append(connection)
            return answer

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    client = Client(url)
    try:
        yield client
    finally:
        client.close()


# ---------------------------------------------------------------------- loops


async def closed_loop(client: Client, bodies: Bodies, connections: int, seconds: float) -> Measured:
    """So many callers, each of whom asks again when answered."""
    sent: list[Sent] = []
    began = time.perf_counter()

    async def caller():
        while (now := time.perf_counter()) < began + seconds:
            answer = await client.ask(next(bodies))
            sent.append(Sent(answer.status, time.perf_counter() - now, 0.0))

    await asyncio.gather(*(caller() for _ in range(connections)))
    return Measured(sent, time.perf_counter() - began)


async def open_loop(client: Client, bodies: Bodies, rate: float, seconds: float, seed: int = 0) -> Measured:
    """Requests that come at `rate` a second on average, independently of one another and of the answers.

    Times count from when a request was due: a server that stalls pays for all who came meanwhile.
    """
    rng = random.Random(seed)
    sent: list[Sent] = []
    running: set[asyncio.Task] = set()
    began = time.perf_counter()

    async def one(due: float):
        late = time.perf_counter() - due
        answer = await client.ask(next(bodies))
        sent.append(Sent(answer.status, time.perf_counter() - due, late))

    due = began + rng.expovariate(rate)
    while due < began + seconds:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        while due <= time.perf_counter() and due < began + seconds:
            task = asyncio.create_task(one(due))
            running.add(task)
            task.add_done_callback(running.discard)
            due += rng.expovariate(rate)
    if running:
        await asyncio.wait(running)
    return Measured(sent, time.perf_counter() - began)


def run(coroutine):
    """On uvloop where it is installed: the client takes less of the core that it shares with the server."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


# ---------------------------------------------------------------------- servers


@contextlib.contextmanager
def server(module: str, *flags: str) -> Iterator[str]:
    """The address of `python -m module` with these flags, once it is ready; ended by SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        command = [sys.executable, "-m", module, *flags, f"--port={port}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            run(_until_ready(url, process, log))
            print(f"{module}: ready after {time.perf_counter() - began:.1f} s")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"{module}: did not end within 30 s of SIGTERM and was killed")


async def _until_ready(url: str, process: subprocess.Popen, log) -> None:
    until = time.monotonic() + _READY_SECONDS
    async with client_of(url) as client:
        while (await client.ask(request_bytes("GET", "/health/ready"))).status != 200:
            if process.poll() is not None or time.monotonic() > until:
                log.seek(0)
                what = "ended" if process.poll() is not None else f"not become ready within {_READY_SECONDS} s"
                raise UserError(f"{process.args[2]} has {what}; it said last: {' '.join(log.read().splitlines()[-1:])}")
            await asyncio.sleep(0.1)


async def get(client: Client, path: str) -> str:
    answer = await client.ask(request_bytes("GET", path))
    if answer.status != 200:
        raise UserError(f"GET {path}: status {answer.status}, {answer.body[:200]!r}")
    return answer.body.decode()


async def metric(client: Client, name: str) -> float:
    """Of /metrics."""
    for line in (await get(client, "/metrics")).splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise UserError(f"/metrics has no {name}")


# ---------------------------------------------------------------------- the client's own ceiling


class _Fixed(asyncio.Protocol):
    """Answers every piece that arrives; requests of one piece, as ours are."""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._transport.write(_FIXED)


async def _serve_fixed() -> None:
    server = await asyncio.get_running_loop().create_server(_Fixed, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def ceiling(connections: int = 16, seconds: float = 3) -> Measured:
    """What the client reaches where the server, a process of its own, costs next to nothing."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve_load", "--fixed"], stdout=subprocess.PIPE, text=True
    ) as fixed:
        try:
            url = f"http://127.0.0.1:{int(fixed.stdout.readline())}"
            body = request_bytes("POST", "/", {"history": [f"id:{number}" for number in range(30)]})

            async def measure():
                async with client_of(url) as client:
                    return await closed_loop(client, iter(lambda: body, None), connections, seconds)

            return run(measure())
        finally:
            fixed.terminate()


def main(argv: list[str]) -> None:
    if "--fixed" in argv:
        run(_serve_fixed())
    for connections in (1, 16, 64):
        found = ceiling(connections)
        print(f"{connections:4} connections: {found.rate:,.0f} requests/s, p99 {found.milliseconds(0.99):.2f} ms")


if __name__ == "__main__":
    doors.run_door(main)
