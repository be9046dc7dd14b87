"""A Google Cloud Storage bucket in memory: over HTTP for TensorStore, directly for epath.

Objects have names and no folders; what epath calls a folder is an object whose name ends with '/', as TensorFlow's
gfile makes them. There is no appending. Both ways see the same objects, as they would in one bucket.
"""

import contextlib
import fnmatch
import io
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

from etils.epath import backend as epath_backend
from etils.epath import gpath, stat_utils
from orbax.checkpoint._src.path import gcs_utils


class Bucket(epath_backend.Backend):
    """What epath asks of gs://bucket/..., whatever the bucket's name."""

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.lock = threading.RLock()
        self.generation = 0

    def put(self, name: str, content: bytes) -> int:
        with self.lock:
            self.generation += 1
            self.objects[name] = content, self.generation
            return self.generation

    def names(self, folder: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(folder))

    def open(self, path, mode):
        name = _name(path)
        if "a" in mode or "+" in mode:
            raise NotImplementedError(f"{path}: objects cannot be appended to")
        if "r" in mode:
            if name not in self.objects:
                raise FileNotFoundError(path)
            content = self.objects[name][0]
            return io.BytesIO(content) if "b" in mode else io.StringIO(content.decode())
        return _Written(self, name) if "b" in mode else io.TextIOWrapper(_Written(self, name), write_through=True)

    def exists(self, path):
        return _name(path) in self.objects or self.isdir(path)

    def isdir(self, path):
        return bool(self.names(f"{_name(path)}/"))

    def listdir(self, path):
        folder = f"{_name(path)}/"
        if not self.isdir(path):
            raise FileNotFoundError(path)
        return sorted({name[len(folder) :].split("/")[0] for name in self.names(folder)} - {""})

    def glob(self, path):
        pattern, paths = _name(path), set()
        for name in self.names():
            parts = name.rstrip("/").split("/")
            paths |= {"/".join(parts[: count + 1]) for count in range(len(parts))}
        depth = pattern.count("/")
        return [f"gs://bucket/{p}" for p in sorted(paths) if p.count("/") == depth and fnmatch.fnmatch(p, pattern)]

    def walk(self, top, *, top_down=True, on_error=None):
        raise NotImplementedError

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if not exist_ok and self.isdir(path):
            raise FileExistsError(path)
        self.put(f"{_name(path)}/", b"")

    mkdir = makedirs

    def rmtree(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        for name in self.names(f"{_name(path)}/"):
            del self.objects[name]

    def remove(self, path):
        if self.objects.pop(_name(path), None) is None:
            raise FileNotFoundError(path)

    def rename(self, path, dst):
        if self.isdir(path):
            raise NotImplementedError(f"{path}: a folder is renamed by copying all that is in it")
        self.copy(path, dst, overwrite=True)
        self.remove(path)

    replace = rename

    def copy(self, path, dst, overwrite):
        self.put(_name(dst), self.objects[_name(path)][0])

    def stat(self, path):
        content, generation = self.objects.get(_name(path), (b"", 0))
        return stat_utils.StatResult(self.isdir(path), len(content), generation, None, None, 0o644)


class _Written(io.BytesIO):
    """An object appears when its writer closes it, whole."""

    def __init__(self, bucket: Bucket, name: str):
        super().__init__()
        self._bucket, self._object = bucket, name

    def close(self):
        if not self.closed:
            self._bucket.put(self._object, self.getvalue())
        super().close()


def _name(path) -> str:
    return str(path).removeprefix("gs://").partition("/")[2].rstrip("/")


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, content: bytes = b"", generation: int = 0) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("x-goog-generation", str(generation))
            self.end_headers()
            self.wfile.write(content)

        def described(self, name: str) -> dict:
            content, generation = bucket.objects[name]
            return {"name": name, "generation": str(generation), "size": str(len(content))}

        def asked(self) -> tuple[str, dict[str, str]]:
            """The object's name, '' for the bucket's objects, and the query."""
            url = urllib.parse.urlsplit(self.path)
            name = urllib.parse.unquote(url.path.partition("/o/")[2])
            return name, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

        def refused(self, name: str, query: dict[str, str]) -> bool:
            """Whether a condition on the object's generation does not hold; answers if so."""
            now = str(bucket.objects[name][1]) if name in bucket.objects else "0"
            if query.get("ifGenerationMatch", now) != now:
                self.answer(412)
            elif query.get("ifGenerationNotMatch") == now:
                self.answer(304)
            else:
                return False
            return True

        def do_GET(self):
            name, query = self.asked()
            with bucket.lock:
                if not name:
                    first, last = query.get("startOffset", ""), query.get("endOffset")
                    names = [n for n in bucket.names(query.get("prefix", "")) if n >= first and (not last or n < last)]
                    return self.answer(200, json.dumps({"items": [self.described(n) for n in names]}).encode())
                if self.refused(name, query):
                    return None
                if name not in bucket.objects:
                    return self.answer(404)
                content, generation = bucket.objects[name]
            if query.get("alt") != "media":
                return self.answer(200, json.dumps(self.described(name)).encode())
            span = self.headers.get("Range")
            if not span:
                return self.answer(200, content, generation)
            first, last = span.removeprefix("bytes=").split("-")
            start, end = (int(first), int(last or len(content))) if first else (len(content) - int(last), len(content))
            part = content[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("x-goog-generation", str(generation))
            self.end_headers()
            self.wfile.write(part)
            return None

        def do_POST(self):
            _, query = self.asked()
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with bucket.lock:
                if not self.refused(query["name"], query):
                    bucket.put(query["name"], content)
                    self.answer(200, json.dumps(self.described(query["name"])).encode())

        def do_DELETE(self):
            name, query = self.asked()
            with bucket.lock:
                if not self.refused(name, query):
                    found = bucket.objects.pop(name, None)
                    self.answer(204 if found else 404)

    return Handler


@contextlib.contextmanager
def serving(monkeypatch) -> Iterator[Bucket]:
    """Within it, gs:// paths of this process are in the bucket that is given."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    backends = {**gpath._PREFIX_TO_BACKEND, "gs": bucket}
    try:
        # TensorFlow's file system, which epath would take where it is installed, speaks to Google alone.
        with (
            mock.patch.object(gpath, "_PREFIX_TO_BACKEND", backends),
            mock.patch.object(gpath, "_is_tf_installed", lambda: False),
            # Of google-cloud-storage, Orbax asks one thing: whether the bucket has folders of its own.
            mock.patch.object(gcs_utils, "get_bucket", lambda _: mock.Mock(hierarchical_namespace_enabled=False)),
        ):
            yield bucket
    finally:
        server.shutdown()
