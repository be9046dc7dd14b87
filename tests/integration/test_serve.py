"""`python -m t5x_lite.serve` as a process: starts, reloads under load, is killed, drains."""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.serving.models import damaged, save_run

pytestmark = pytest.mark.slow

TOKEN = "let-me"
BODY = json.dumps({"user": "ben", "k": 5}).encode()


def fetch(url, body=None, **headers):
    """(status, JSON); status 0 where nobody listens."""
    headers = {"Content-Type": "application/json"} | headers
    request = urllib.request.Request(url, body, headers, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):  # not: a connection that is cut
            return 0, None
        raise


@contextlib.contextmanager
def server(folder, cache, *flags):
    """(process, address) of one that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "t5x_lite.serve", f"--model_dir={folder}", f"--port={port}", "--max_batch=2"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "T5X_LITE_ADMIN_TOKEN": TOKEN}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    process = subprocess.Popen(
        [*command, "--max_k=10", *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        output = []
        threading.Thread(target=lambda: output.extend(process.stdout), daemon=True).start()
        for _ in range(1200):
            if fetch(f"{address}/health/ready")[0] == 200:
                break
            assert process.poll() is None, output
            time.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait()


class Load:
    """Threads that ask until they are told to stop, and count what they are answered."""

    def __init__(self, address, threads=3):
        self.statuses, self.versions = collections.Counter(), set()
        self._url, self._going = f"{address}/v1/recommend", True
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self):
        while self._going:
            try:
                status, found = fetch(self._url, BODY)
            except OSError as error:
                status, found = repr(error), None
            self.statuses[status] += 1
            if status == 200:
                self.versions.add(found["model_version"])

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._going = False
        for thread in self._threads:
            thread.join()


def test_reloading_under_load_fails_no_request_be_the_new_run_good_or_not(tmp_path):
    folders = {
        "good": save_run(tmp_path / "good", seed=1),
        "corrupt": save_run(tmp_path / "corrupt", weights=damaged),
        "mismatching": save_run(tmp_path / "mismatching", items_sha256="0" * 64),
    }
    link = tmp_path / "current"
    link.symlink_to(save_run(tmp_path / "first"))
    with server(link, tmp_path / "cache") as (_, address), Load(address) as load:
        for name, folder in folders.items():
            (tmp_path / "next").symlink_to(folder)
            (tmp_path / "next").replace(link)
            status, _ = fetch(f"{address}/admin/reload", b"", Authorization=f"Bearer {TOKEN}")
            assert status == (200 if name == "good" else 409), name
            time.sleep(0.5)
    assert set(load.statuses) == {200} and load.statuses[200] > 20
    assert len(load.versions) == 2  # the first and the good one


def test_after_a_kill_it_starts_again_and_compiles_nothing_anew(tmp_path):
    run, cache = save_run(tmp_path / "run"), tmp_path / "cache"
    answers, kept = [], []
    for _ in range(2):
        with server(run, cache) as (process, address):
            answers.append(fetch(f"{address}/v1/recommend", BODY)[1]["items"])
            kept.append(set(cache.rglob("*-cache")))
            process.send_signal(signal.SIGKILL)
    assert answers[0] == answers[1]
    assert kept[0] == kept[1] and len(kept[0]) >= 2  # lists, and the score of the canary


def test_a_signal_lets_it_end_what_it_has_and_say_so_before(tmp_path):
    flags = ["--drain_seconds=2"]
    with server(save_run(tmp_path / "run"), tmp_path / "cache", *flags) as (process, address):
        with Load(address, threads=1) as load:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert fetch(f"{address}/health/ready") == (503, {"status": "draining"})
            assert fetch(f"{address}/v1/recommend", BODY)[0] == 200
            process.wait(30)
        assert process.returncode in (0, -signal.SIGTERM)
        assert set(load.statuses) == {200, 0}


def test_headers_have_an_end(tmp_path):
    with server(save_run(tmp_path / "run"), tmp_path / "cache") as (_, address):
        port = int(address.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
            assert b" 400 " in connection.recv(1000).splitlines()[0]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX")
            began = time.monotonic()
            assert connection.recv(1000) == b"" and 5 < time.monotonic() - began < 25
        assert fetch(f"{address}/v1/recommend", BODY)[0] == 200


def test_what_cannot_be_served_is_a_line_and_status_2(tmp_path):
    folder = save_run(tmp_path / "run", items_sha256="0" * 64)
    command = [sys.executable, "-m", "t5x_lite.serve", f"--model_dir={folder}", "--port=0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 2
    assert found.stderr.strip().splitlines()[-1].startswith("python -m t5x_lite.serve: ") and "sha256" in found.stderr
