"""Whatever is sent: an answer or a problem, never an error of the server's own.

Ten thousand bodies instead of a hundred: pytest tests/serving/test_fuzz.py --hypothesis-profile=thorough
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.recommendation.films import TITLES, USERS
from tests.serving.models import client

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
titles = st.sampled_from([*TITLES, "id:f101", "id:", "", "Rd Rver", "\x00", "x" * 400, "<b>", "漢字", "\ud800"])
RECOMMEND = {
    "user": st.sampled_from([*USERS, "nobody", "", "\n"]),
    "history": st.lists(titles, max_size=12),
    "interests": st.sampled_from(["", "horror", "a war of the nineties", "\u202e", "{history}", "%s", "<item_3>"]),
    "k": st.integers(-3, 12) | st.just(10**400),
    "exclude": st.lists(titles, max_size=60),
    "exclude_seen": st.booleans(),
    "filters": st.lists(
        st.sampled_from(
            ["genre=Comedy", "year>=1990", "year<1980", "genre!=War", "=", "year>", ">=1", "a=b=c", "year>nan"]
        ),
        max_size=4,
    ),
    "candidates": st.lists(titles, max_size=12),
    "evidence": st.booleans(),
    "template": st.integers(-1, 4),
    "deadline_ms": st.integers(-1, 100) | st.just(10**400),
}
PROMPTS = st.sampled_from(["What comes next?", "", " ", "\ud83d", "River " * 100, "\u0000", "</s><pad>", "<item_1>"])
GENERATE = {
    "prompt": PROMPTS,
    "text": PROMPTS,
    "target_language": st.sampled_from(["de", "German", "", "xx", "../de"]),
    "mode": st.sampled_from(["greedy", "beams", "sample"]),
    "n_best": st.integers(-1, 6),
    "stream": st.booleans(),
    "deadline_ms": RECOMMEND["deadline_ms"],
}
SCORE = {"deadline_ms": RECOMMEND["deadline_ms"], "prompt": PROMPTS, "targets": st.lists(PROMPTS, max_size=20)}


def bodies(fields):
    """Of fields that are right, of fields that are anything, several of them, and what is no body at all."""
    nearly = st.fixed_dictionaries({}, optional={name: values | anything for name, values in fields.items()})
    right = st.fixed_dictionaries({}, optional=fields)
    one = right | nearly | anything
    return one | st.builds(lambda requests: {"requests": requests}, st.lists(right | nearly, max_size=5) | anything)


ROUTES = {"/v1/recommend": RECOMMEND, "/v1/generate": GENERATE, "/v1/score": SCORE}


@pytest.fixture(scope="module")
def web():
    with client(max_queue=1000) as found:
        yield found


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=st.one_of(*(st.tuples(st.just(route), bodies(fields)) for route, fields in ROUTES.items())))
def test_no_body_is_an_error_of_the_server(web, asked):
    route, body = asked
    found = web.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    check(found)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    route=st.sampled_from(sorted(ROUTES)),
    body=st.binary(max_size=60),
    kind=st.sampled_from(["application/json", "text/x"]),
)
def test_no_bytes_are_an_error_of_the_server(web, route, body, kind):
    check(web.post(route, content=body, headers={"content-type": kind}))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(q=st.text(max_size=20), limit=st.integers() | st.text(max_size=5))
def test_no_search_is_an_error_of_the_server(web, q, limit):
    check(web.get("/v1/items", params={"q": q.encode("utf-8", "replace"), "limit": limit}))


def check(found):
    assert found.status_code < 500 or found.status_code == 504, found.text
    if found.status_code >= 400:
        assert (
            found.headers["content-type"] == "application/problem+json" and found.json()["status"] == found.status_code
        )
    elif found.headers["content-type"] == "application/json":
        for each in found.json().get("results", []):
            assert each.get("problem", {"status": 422})["status"] in (422, 429, 504)
