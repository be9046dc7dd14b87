"""Around every request: an id, size and time limits, the key, an early no where nothing is free, log and counters."""

import asyncio
import functools
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t5x_lite.serving.batcher import Batcher
from t5x_lite.serving.metrics import Metrics
from t5x_lite.serving.problems import MEDIA_TYPE, Problem, internal
from t5x_lite.serving.settings import Settings
from t5x_lite.serving.versions import Versions

log = logging.getLogger(__name__)
access = logging.getLogger("t5x_lite.access")

COMPUTING = ("/v1/recommend", "/v1/generate", "/v1/score")
_ROUTES = (*COMPUTING, "/v1/items", "/v1/info", "/health/live", "/health/ready", "/metrics", "/admin/reload", "/")
_to_json = json.JSONEncoder().encode
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
]


class Guard:
    """The outermost ASGI application: what it refuses costs no parsing, and no place in the queue."""

    def __init__(self, app: ASGIApp, settings: Settings, versions: Versions, batcher: Batcher, metrics: Metrics):
        self._app = app
        self._settings = settings
        self._versions = versions
        self._batcher = batcher
        self._metrics = metrics
        self._computing = 0  # requests that were let in and are not answered
        # Looking a counter up by its labels takes longer than counting.
        self._counters = functools.cache(
            lambda route, status: (metrics.requests.labels(route, status), metrics.latency.labels(route))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = _request_id(headers)
        scope["request_id"] = request_id
        status: int | None = None
        computes = scope["path"] in COMPUTING and scope["method"] == "POST"

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), *_HEADERS]
                message = message | {"headers": [*message["headers"], *extra]}
            await send(message)

        try:
            problem = self._refusal(scope, headers, computes)
            if problem:
                await _send(problem, request_id, answer)
            else:
                self._computing += computes
                try:
                    await self._app(scope, self._limited(receive), answer)
                finally:
                    self._computing -= computes
        except Exception:
            log.exception("request %s failed", request_id)
            if status is None:
                await internal().response(request_id)(scope, receive, answer)
        finally:
            # 499: the client left before there was an answer.
            self._record(scope, request_id, status or 499, time.perf_counter() - began)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes], computes: bool) -> Problem | None:
        """What needs no look at the body."""
        path, key = scope["path"], self._settings.api_key
        if path.startswith("/v1/") and key is not None and not bears(headers.get(b"authorization"), key):
            return Problem(401, "give the key as Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > self._settings.max_body:
            return self._too_large()
        if computes:
            if self._versions.current is None:
                return Problem(503, "the model is being loaded and compiled", retry_after=5)
            # What is being read has no place in the queue yet, and must not be read to find none.
            if self._batcher.full or self._computing >= self._settings.max_queue + self._settings.max_batch:
                self._metrics.rejected.labels("queue_full").inc()
                return Problem(429, "the queue is full", retry_after=self._batcher.retry_after)
        return None

    def _too_large(self) -> Problem:
        limit = self._settings.max_body
        return Problem(413, f"the body is larger than {limit} bytes; send several", headers={"Connection": "close"})

    def _limited(self, receive: Receive) -> Receive:
        """The same messages, as long as the body is not too large nor too slow."""
        size, whole = 0, False
        deadline = time.monotonic() + self._settings.timeout

        async def limited() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()  # that the client leaves
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
            except TimeoutError:
                seconds = self._settings.timeout
                raise Problem(408, f"the body took more than {seconds:g} s", headers={"Connection": "close"}) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._settings.max_body:
                raise self._too_large()
            return message

        return limited

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        requests, latency = self._counters(scope["path"] if scope["path"] in _ROUTES else "other", status)
        requests.inc()
        latency.observe(seconds)
        if access.isEnabledFor(logging.INFO):
            client = scope["client"][0] if scope.get("client") else None
            line = {
                "time": round(time.time(), 3),
                "request_id": request_id,
                "client": client,
                "method": scope["method"],
            }
            line |= {"path": scope["path"][:200], "status": status, "ms": round(1000 * seconds, 2)}
            access.info(_to_json(line))


async def _send(problem: Problem, request_id: str, send: Send) -> None:
    """What the problem's response would send, in less time: under overload most answers are these."""
    body = _to_json(problem.body(request_id)).encode()
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **(problem.headers or {})}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status_code, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def bears(header: bytes | None, secret: str) -> bool:
    """Whether an Authorization header has this secret; takes as long whether it has or not."""
    scheme, _, given = (header or b"").partition(b" ")
    return hmac.compare_digest(given.strip(), secret.encode()) and scheme.lower() == b"bearer"


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
