"""Health, metrics, reload, and the page."""

import ipaddress
import mimetypes
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from t5x_lite.errors import UserError
from t5x_lite.serving.asking import Server
from t5x_lite.serving.guard import bears
from t5x_lite.serving.problems import Problem


def router(server: Server) -> APIRouter:
    """The routes of one server beside /v1."""
    routes = APIRouter()
    page = _page()

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @routes.get("/health/ready")
    async def ready() -> Response:
        """200 once everything is compiled and checked, until the server is told to stop."""
        if server.versions.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "draining" if server.versions.draining else "loading"}, 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        gauges, served = server.metrics, server.versions.current
        gauges.ready.set(server.versions.ready)
        gauges.queue_depth.set(server.batcher.depth)
        gauges.compilations.set(served.compile_count if served else 0)
        return Response(gauges.text(), media_type="text/plain; version=0.0.4")

    @routes.post("/admin/reload")
    async def reload(request: Request) -> dict[str, Any]:
        """Serves what the run folder holds now; 409 where that is refused, and the old version stays."""
        _check_admin(server, request)
        began = time.perf_counter()
        try:
            changed = await server.versions.load()
        except UserError as error:
            raise Problem(409, str(error)) from None
        served = server.versions.served()
        names = {"model_version": served.model_version, "catalogue_version": served.catalogue_version}
        return {"changed": changed, **names, "seconds": round(time.perf_counter() - began, 3)}

    @routes.get("/", include_in_schema=False)
    async def index() -> Response:
        return page["index.html"]

    @routes.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in page:
            raise Problem(404, "the page has no such file")
        return page[name]

    return routes


def _page() -> Mapping[str, Response]:
    """The page's files, read once: no path of a request reaches the file system."""
    files = (resources.files(__package__) / "page").iterdir()
    cache = {"Cache-Control": "no-cache"}
    return {
        file.name: Response(file.read_bytes(), media_type=mimetypes.guess_type(file.name)[0], headers=cache)
        for file in files
        if file.is_file()
    }


def _check_admin(server: Server, request: Request) -> None:
    """Problem 404 where it is off, 403 for other machines, 401 for another token."""
    token = server.settings.admin_token
    if token is None:
        raise Problem(404, "reloading is off; start the server with --admin_token_file or T5X_LITE_ADMIN_TOKEN")
    host = request.client.host if request.client else ""
    if not server.settings.admin_anywhere and not _is_loopback(host):
        raise Problem(403, "only this machine may reload; start the server with --admin_anywhere to allow others")
    if not bears(request.headers.get("authorization", "").encode("latin-1"), token):
        raise Problem(401, "give the token as Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
