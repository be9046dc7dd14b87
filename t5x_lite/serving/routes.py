"""/v1: recommend, generate, score, look up."""

import asyncio
import http
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from t5x_lite.decoding.engine import Answer, AnswerStream
from t5x_lite.decoding.languages import name_of
from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.recommender import Recommendations
from t5x_lite.serving import settings as limits
from t5x_lite.serving.asking import Server, while_there
from t5x_lite.serving.problems import MEDIA_TYPE, Problem, internal, of_field
from t5x_lite.serving.programs import BeginStream, ExtendStream, Generate, Recommend, ScoreTargets
from t5x_lite.serving.schemas import (
    Body,
    GenerateAnswer,
    GenerateRequest,
    OneOrSeveralGenerate,
    OneOrSeveralRecommend,
    ProblemDetails,
    RecommendAnswer,
    RecommendRequest,
    Results,
    ScoreAnswer,
    ScoreRequest,
    Several,
)
from t5x_lite.serving.served import Served

log = logging.getLogger(__name__)

_PROBLEM = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}  # FastAPI has it there for `Results`
_STATUSES = (400, 401, 404, 408, 413, 422, 429, 500, 503, 504)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": http.HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
    for status in _STATUSES
}

Answering = Callable[[Server, Served, Any], Awaitable[dict[str, Any]]]


def _described(model: Any) -> dict[int | str, dict[str, Any]]:
    # The routes answer with plain dicts: validating them again would cost as much as the model does.
    return PROBLEMS | {200: {"model": model, "description": "the answer"}}


def router(server: Server) -> APIRouter:
    """The routes of one server."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/recommend", responses=_described(RecommendAnswer | Results[RecommendAnswer]), response_model=None)
    async def recommend(request: Request, body: OneOrSeveralRecommend) -> Response:
        """Ranked items for a user, a history, or stated interests; or one list for each of several requests."""
        served = _able(server, "recommend")
        return JSONResponse(await while_there(request, _each(server, served, body, recommended, request)))

    @routes.post("/generate", responses=_described(GenerateAnswer | Results[GenerateAnswer]), response_model=None)
    async def generate(request: Request, body: OneOrSeveralGenerate) -> Response:
        """An answer to a prompt, or a translation; streamed as server-sent events where asked."""
        served = _able(server, "answer")
        if isinstance(body, GenerateRequest) and body.stream:
            deadline = server.deadline(body.deadline_ms)
            begun = server.run("/v1/generate", BeginStream(served), _prompt(served, body), deadline)
            (state, warnings), _ = await while_there(request, begun)
            events = streamed(server, served, state, warnings, deadline, request.scope["request_id"])
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return JSONResponse(await while_there(request, _each(server, served, body, generated, request)))

    @routes.post("/score", responses=_described(ScoreAnswer), response_model=None)
    async def score(request: Request, body: ScoreRequest) -> Response:
        """How likely the model finds each of the given answers."""
        return JSONResponse(await while_there(request, scored(server, _able(server, "answer"), body)))

    @routes.get("/items", responses=PROBLEMS)
    async def items(
        q: Annotated[str, Query(max_length=limits.TITLE_LENGTH)], limit: Annotated[int, Query(ge=1, le=50)] = 10
    ) -> dict[str, Any]:
        """Items whose titles have words that begin as the words of `q` do."""
        recommender = _able(server, "recommend").recommender
        found = await asyncio.to_thread(recommender.titles.search, q, limit)
        catalogue = recommender.knowledge.catalogue
        return {"items": [_described_item(catalogue, number) for number in found]}

    @routes.get("/info", responses=PROBLEMS)
    async def info() -> dict[str, Any]:
        """What this server can do, of which versions, within which limits."""
        served = server.versions.served()
        sizes = {"k": server.settings.max_k, "body_bytes": server.settings.max_body}
        sizes |= {"history": limits.MOST_ITEMS, "filters": limits.MOST_FILTERS, "requests": server.most_requests}
        return {
            "capabilities": served.capabilities,
            "model_version": served.model_version,
            "catalogue_version": served.catalogue_version,
            "limits": sizes,
            "languages": served.languages,
            **served.described_items,
        }

    return routes


def _described_item(catalogue: Catalogue, number: int) -> dict[str, Any]:
    attributes = {name: column[number] for name, column in catalogue.attributes.items()}
    return {"item": catalogue.ids[number], "title": catalogue.titles[number], "attributes": attributes}


def _able(server: Server, capability: str) -> Served:
    served = server.versions.served()
    if not served.capabilities[capability]:
        raise Problem(404, f"this model was not trained to {capability}; it can {served.abilities}")
    return served


async def _each(server: Server, served: Served, body: Any, answer: Answering, request: Request) -> dict[str, Any]:
    """The answer to one request, or of several the answer or the problem of each."""
    if not isinstance(body, Several):
        return await answer(server, served, body)
    most = server.most_requests
    if len(body.requests) > most:
        raise of_field("requests", f"there are {len(body.requests)}; at most {most} have room in the queue")

    async def result(each: Body) -> dict[str, Any]:
        try:
            return await answer(server, served, each)
        except Problem as problem:
            return {"problem": problem.body(request.scope["request_id"])}

    return {"results": await asyncio.gather(*map(result, body.requests))}


# ------------------------------------------------------------------ recommend


async def recommended(server: Server, served: Served, body: RecommendRequest) -> dict[str, Any]:
    """One list."""
    if body.k > server.settings.max_k:
        raise of_field("k", f"{body.k} is more than {server.settings.max_k}, the most that this server lists")
    program = Recommend.of(served, body.k, body.evidence)
    payload = body.model_dump(exclude={"deadline_ms"})
    found, timing = await server.run("/v1/recommend", program, payload, server.deadline(body.deadline_ms))
    is_fallback = found.source != "model"
    if is_fallback:
        server.metrics.fallbacks.inc()
    if len(found.items) < body.k:
        server.metrics.short_lists.inc()
    return {
        "items": _items(found, served.recommender.knowledge.catalogue, body.evidence),
        "source": "fallback" if is_fallback else "model",
        "warnings": found.warnings,
        "template": body.template,
        "model_version": served.model_version,
        "catalogue_version": served.catalogue_version,
        "timing": timing,
    }


def _items(found: Recommendations, catalogue: Catalogue, evidence: bool) -> list[dict[str, Any]]:
    rows = [
        {"rank": each.rank, "score": round(each.score, 6), **_described_item(catalogue, catalogue.number_of[each.item])}
        for each in found.items
    ]
    if evidence:
        for row, item in zip(rows, found.items, strict=True):
            row["evidence"] = [
                {"item": reason.item, "title": reason.title, "effect": round(reason.effect, 6)}
                for reason in item.evidence
            ]
    return rows


# ------------------------------------------------------------------ generate and score


def _prompt(served: Served, body: GenerateRequest) -> str:
    if body.prompt is not None:
        return body.prompt
    if not served.translates:
        raise of_field("text", f"this model was not trained to translate; it can {served.abilities}")
    try:
        return f"Translate to {name_of(body.target_language)}: {body.text}"
    except UserError as error:
        raise of_field("target_language", str(error)) from None


def _written(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "score": round(answer.score, 6), "ended": answer.ended}


async def generated(server: Server, served: Served, body: GenerateRequest) -> dict[str, Any]:
    """One answer."""
    if body.stream:
        raise of_field("stream", "one of several requests cannot be streamed; send it alone")
    program, deadline = Generate(served, body.mode), server.deadline(body.deadline_ms)
    (answer, warnings), timing = await server.run("/v1/generate", program, _prompt(served, body), deadline)
    others = [_written(other) for other in answer.others[: body.n_best - 1]]
    about = {"warnings": warnings, "model_version": served.model_version, "timing": timing}
    return _written(answer) | {"others": others} | about


async def streamed(
    server: Server, served: Served, state: AnswerStream, warnings: list[str], deadline: float, request_id: str
) -> AsyncIterator[str]:
    """The events of an answer that has begun."""
    sent = ""
    try:
        while state.answer is None:
            state, _ = await server.run("/v1/generate", ExtendStream(served), state, deadline, admitted=True)
            if len(state.text) > len(sent):
                yield _event({"text": state.text[len(sent) :]})
                sent = state.text
    except Problem as problem:
        yield _event(problem.body(request_id), "problem")
    except Exception:
        log.exception("stream %s failed", request_id)
        yield _event(internal().body(request_id), "problem")
    else:
        about = {"warnings": warnings, "model_version": served.model_version}
        yield _event(_written(state.answer) | about, "done")


def _event(data: dict[str, Any], name: str | None = None) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def scored(server: Server, served: Served, body: ScoreRequest) -> dict[str, Any]:
    """The scores of one prompt's targets."""
    payload, deadline = (body.prompt, body.targets), server.deadline(body.deadline_ms)
    found, timing = await server.run("/v1/score", ScoreTargets(served), payload, deadline)
    scores = [{"total": round(each.total, 6), "tokens": [round(x, 6) for x in each.tokens]} for each in found]
    return {"scores": scores, "model_version": served.model_version, "timing": timing}
