"""Errors as problem details (RFC 9457): what is wrong, in which field, and what would be right."""

import http
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from t5x_lite.errors import nearest

MEDIA_TYPE = "application/problem+json"

_NAME_LENGTH = 60  # of an unknown field, as it is repeated


class Problem(HTTPException):
    """An answer that is an error. `errors` name fields, as `{"field": "history[2]", "message": ...}`."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[Mapping[str, str]] = (),
        *,
        retry_after: float | None = None,  # seconds
        headers: Mapping[str, str] | None = None,
    ):
        wait = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
        super().__init__(status, detail, {**(headers or {}), **wait})
        self.errors = list(errors)

    def body(self, instance: str) -> dict[str, Any]:
        """The JSON of it; `instance` is the request's id."""
        title = http.HTTPStatus(self.status_code).phrase
        body = {"type": "about:blank", "title": title, "status": self.status_code, "detail": self.detail}
        return body | {"instance": instance} | ({"errors": self.errors} if self.errors else {})

    def response(self, instance: str) -> JSONResponse:
        return JSONResponse(self.body(instance), self.status_code, self.headers, media_type=MEDIA_TYPE)


def of_field(field: str, message: str) -> Problem:
    """One field that is wrong."""
    return Problem(422, f"{field}: {message}" if field else message, [{"field": field, "message": message}])


def internal() -> Problem:
    """An error that is not the client's; what it was is for the log alone."""
    return Problem(500, "an error of the server's own; its log has it under this id")


def of_validation(errors: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Problem:
    """What Pydantic found, without the values: those are the client's, and may be long or secret."""
    if any(error["type"] == "json_invalid" for error in errors):
        error = next(error for error in errors if error["type"] == "json_invalid")
        reason, place = error.get("ctx", {}).get("error", "no JSON"), error["loc"][-1]
        return Problem(400, f"the body is no JSON: {reason} at character {place}")
    found = [{"field": _path(error["loc"]), "message": _message(error, fields)} for error in errors[:20]]
    first = found[0]
    return Problem(422, f"{first['field']}: {first['message']}" if first["field"] else first["message"], found)


def _path(places: Sequence[str | int]) -> str:
    """('body', 'one', 'history', 2) -> 'history[2]'; the names of a union's members are ours, not the client's."""
    path = ""
    for place in places:
        if place in ("body", "query", "one", "several"):
            continue
        name = str(place)[:_NAME_LENGTH]
        path += f"[{name}]" if isinstance(place, int) else f".{name}" if path else name
    return path


def _message(error: Mapping[str, Any], fields: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        return f"there is no such field{nearest(str(error['loc'][-1])[:_NAME_LENGTH], fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
