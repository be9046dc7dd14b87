"""The application: routes, errors as problem details, and what lives as long as it does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from t5x_lite import __doc__ as about
from t5x_lite.errors import UserError
from t5x_lite.serving import operations, routes
from t5x_lite.serving.asking import ClientLeft, Server
from t5x_lite.serving.batcher import Batcher
from t5x_lite.serving.guard import Guard
from t5x_lite.serving.metrics import Metrics
from t5x_lite.serving.problems import Problem, of_validation
from t5x_lite.serving.schemas import GenerateRequest, RecommendRequest, ScoreRequest
from t5x_lite.serving.served import Served
from t5x_lite.serving.settings import Settings
from t5x_lite.serving.versions import Versions

_FIELDS = sorted({*RecommendRequest.model_fields, *GenerateRequest.model_fields, *ScoreRequest.model_fields})


def create_app(
    settings: Settings,
    *,
    served: Served | None = None,
    refused: Callable[[UserError], None] = lambda error: None,
) -> FastAPI:
    """An application that serves what the settings name; it loads that as it starts, unless `served` is given.

    `refused` is told where the first version cannot be served: nothing will ever be ready then.
    """
    metrics = Metrics()
    versions = Versions(settings, metrics, served)
    batcher = Batcher(
        max_batch=settings.max_batch,
        max_wait=settings.max_wait,
        max_queue=settings.max_queue,
        observe_batch=metrics.batches.observe,
    )

    async def begin() -> None:
        if versions.current is None:
            try:
                await versions.load()
            except UserError as error:
                return refused(error)
        if settings.watch:
            await versions.watch()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        beginning = asyncio.create_task(begin())
        yield
        beginning.cancel()
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="t5x_lite",
        description=about,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.versions = versions
    server = Server(settings, versions, batcher, metrics)
    app.include_router(routes.router(server))
    app.include_router(operations.router(server))
    _report_problems(app)
    app.add_middleware(Guard, settings=settings, versions=versions, batcher=batcher, metrics=metrics)
    if settings.cors_origins:  # outside of the guard, whose refusals the other site's page is to read, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    return app


def _report_problems(app: FastAPI) -> None:
    def response(request: Request, problem: Problem) -> Response:
        return problem.response(request.scope.get("request_id", ""))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return response(request, of_validation(error.errors(), _FIELDS))

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        is_ours = isinstance(error, Problem)
        return response(request, error if is_ours else Problem(error.status_code, error.detail, headers=error.headers))

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)  # nobody reads it; the log and the counters do
