"""/v1 over HTTP, with a model of random weights: what it answers is what the engine answers."""

import dataclasses
import json
import re

import pytest

from t5x_lite.decoding.engine import Engine
from t5x_lite.recommendation.recommender import Recommender
from tests.recommendation.films import FILMS, TITLES
from tests.serving.models import client, served


@pytest.fixture(scope="module")
def web():
    with client() as found:
        yield found


def recommend(web, status=200, **body):
    found = web.post("/v1/recommend", json=body)
    assert found.status_code == status, found.text
    return found.json()


def problem(web, path, body, status):
    """The problem's details, with the media type and the id that all have."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    found = web.post(path, content=content, headers={"content-type": "application/json"})
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/problem+json"
    details = found.json()
    assert details["status"] == status and details["instance"] == found.headers["x-request-id"]
    return details


# ------------------------------------------------------------------ recommend


@pytest.mark.parametrize(
    "asked",
    [
        {"history": [TITLES[3], TITLES[17]], "k": 5},
        {"user": "cleo"},
        {"interests": "horror", "filters": ["genre=Comedy", "year>=1990"], "k": 3},
        {"history": ["id:f101"], "interests": "a comedy", "exclude": [TITLES[9]], "exclude_seen": False},
        {"user": "ben", "candidates": [TITLES[1], TITLES[2], TITLES[30]], "template": 2},
    ],
)
def test_a_list_is_the_recommenders(web, asked):
    found, expected = recommend(web, **asked), served().recommender.recommend(**asked)
    assert [(each["rank"], each["item"], each["title"]) for each in found["items"]] == [
        (each.rank, each.item, each.title) for each in expected.items
    ]
    assert [each["score"] for each in found["items"]] == pytest.approx(
        [each.score for each in expected.items], abs=1e-4
    )
    for each in found["items"]:
        number = FILMS.number_of[each["item"]]
        assert each["attributes"] == {name: list(column[number]) for name, column in FILMS.attributes.items()}
    assert "evidence" not in found["items"][0]
    assert found["source"] == "model" and found["warnings"] == list(expected.warnings)
    assert (found["model_version"], found["catalogue_version"]) == ("7-random", "films")
    assert found["template"] == asked.get("template", 0)
    assert set(found["timing"]) == {"queue", "encode", "decode"} and found["timing"]["decode"] > 0


def test_reasons_come_where_they_are_asked_for(web):
    asked = {"history": [TITLES[3], TITLES[17], TITLES[30]], "k": 4, "evidence": True}
    found, expected = recommend(web, **asked), served().recommender.recommend(**asked)
    for ours, theirs in zip(found["items"], expected.items, strict=True):
        assert [reason["title"] for reason in ours["evidence"]] == [reason.title for reason in theirs.evidence]
    assert any(each["evidence"] for each in found["items"])


def test_nobody_known_gets_what_is_popular_and_is_told(web):
    found = recommend(web)
    assert found["source"] == "fallback" and "most popular" in found["warnings"][0] and len(found["items"]) == 10


def test_several_requests_have_each_its_own_result_or_problem(web):
    found = recommend(web, requests=[{"user": "anna", "k": 2}, {"user": "nobody"}, {"history": [TITLES[0]], "k": 7}])
    first, second, third = found["results"]
    assert len(first["items"]) == 2 and len(third["items"]) == 7
    assert second["problem"]["status"] == 422 and second["problem"]["errors"][0]["field"] == "user"


@pytest.mark.parametrize(
    "body, field, says",
    [
        ({"user": "anne"}, "user", "'anna'"),
        ({"history": [TITLES[0], "Red Rivr"]}, "history[1]", "Red River"),
        ({"exclude": ["Nothing"], "user": "ben"}, "exclude[0]", "no title is like"),
        ({"filters": ["year>=1990", "gnre=War"]}, "filters[1]", "genre"),
        ({"filters": ["genre=Western"]}, "filters[0]", "no item has genre 'Western'"),
        ({"user": "ben", "template": 3}, "template", "3"),
        ({"k": 11}, "k", "10"),
        ({"k": 0}, "k", "greater than or equal to 1"),
        ({"k": 10**30}, "k", ""),
        ({"k": "5"}, "k", "integer"),
        ({"k": True}, "k", "integer"),
        ({"histry": ["x"]}, "histry", "nearest: 'history'"),
        ({"user": "ben", "history": [TITLES[0]]}, "", "the one or the other"),
        ({"interests": "a\x00b"}, "interests", "no text"),
        ({"interests": "a\x85"}, "interests", "no text"),
        ({"history": ["\ud83d"]}, "history[0]", "no text"),
        ({"interests": "x" * 501}, "interests", "500"),
        ({"history": ["x" * 301]}, "history[0]", "300"),
        ({"history": ["x"] * 1001}, "history", "1000"),
        ({"deadline_ms": -5}, "deadline_ms", "greater than 0"),
        ({"deadline_ms": 10**400}, "deadline_ms", "3600000"),
        ({f"field{n}": n for n in range(50)}, "", "has 50 fields"),
        ({"requests": [{}] * 65}, "requests", "64"),
        ({"y" * 1000: 1}, "y" * 60, "no such field"),
        ({"requests": [{"user": 3}]}, "requests[0].user", "string"),
        ({"requests": []}, "requests", "at least 1"),
    ],
)
def test_a_mistake_names_its_field_and_what_would_be_right(web, body, field, says):
    details = problem(web, "/v1/recommend", body, 422)
    assert details["errors"][0]["field"] == field
    assert says in details["errors"][0]["message"] and says in details["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"nul", b'{"k": 1e}', b"[" * 100_000, b"\xff\xfe", b'"' + b"9" * 6000])
def test_what_is_no_json_is_told(web, body):
    found = web.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert found.status_code in (400, 422) and found.headers["content-type"] == "application/problem+json"


def test_a_deadline_that_cannot_be_met_is_told(web):
    details = problem(web, "/v1/recommend", {"user": "ben", "evidence": True, "deadline_ms": 1}, 504)
    assert "deadline" in details["detail"]


def test_an_error_of_the_servers_own_is_a_500_that_says_nothing_of_its_inside(monkeypatch):
    def broken(self, requests):
        raise RuntimeError("secret")

    monkeypatch.setattr(Recommender, "answer", broken)
    with client() as web:
        details = problem(web, "/v1/recommend", {"user": "ben"}, 500)
        assert "secret" not in json.dumps(details)
        assert web.get("/health/live").status_code == 200


def test_mixed_requests_compile_nothing_once_all_is_warm(web):
    before = served().compile_count
    bodies = [{"user": user, "k": k} for user, k in (("ben", 1), ("anna", 10), ("cleo", 3), ("dan", 4))]
    bodies += [body | {"filters": ["year>=1990"]} for body in bodies[:2]]
    bodies += [
        body | {"filters": [f"genre={genre}"]} for body, genre in zip(bodies[:2], ("War", "Comedy"), strict=True)
    ]
    bodies += [{"interests": "horror"}, {"history": [TITLES[0]] * 12, "evidence": True}]
    for several in (bodies[:1], bodies[:3], bodies):
        assert not any("problem" in each for each in recommend(web, requests=several)["results"])
    asked = {
        "/v1/generate": [{"requests": [{"prompt": "a"}, {"prompt": "b" * 100, "mode": "beams"}]}],
        "/v1/score": [{"prompt": "a", "targets": ["b", "c d", ""]}],
    }
    asked["/v1/generate"].append({"prompt": "a", "stream": True})
    for route, bodies in asked.items():
        assert [web.post(route, json=body).status_code for body in bodies] == [200] * len(bodies)
    assert served().compile_count == before


# ------------------------------------------------------------------ generate and score


def test_an_answer_is_the_engines(web):
    expected = served().engine.generate(["What comes next?"])[0]
    found = web.post("/v1/generate", json={"prompt": "What comes next?"}).json()
    assert (found["text"], found["ended"], found["others"]) == (expected.text, expected.ended, [])
    assert found["score"] == pytest.approx(expected.score, abs=1e-4) and found["model_version"] == "7-random"


def test_a_translation_asks_in_words_and_beams_give_the_best_few(web):
    body = {"text": "Red River", "target_language": "de", "mode": "beams", "n_best": 3}
    found = web.post("/v1/generate", json=body).json()
    expected = served().engine.generate(["Translate to German: Red River"], beams=4, n_best=4)[0]
    assert [found["text"], *(other["text"] for other in found["others"])] == [
        expected.text,
        *(other.text for other in expected.others[:2]),
    ]


def events(found):
    """(name, data) of each event."""
    parts = [dict(line.split(": ", 1) for line in event.split("\n")) for event in found.text.strip().split("\n\n")]
    return [(part.get("event", "message"), json.loads(part["data"])) for part in parts]


def test_a_stream_sends_the_text_in_pieces_and_then_as_a_whole(web):
    found = web.post("/v1/generate", json={"prompt": "What comes next?", "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *pieces, (name, whole) = events(found)
    expected = served().engine.generate(["What comes next?"])[0]
    assert name == "done" and whole["text"] == expected.text
    assert "".join(data["text"] for _, data in pieces) == expected.text and len(pieces) > 1


def test_an_error_in_the_middle_of_a_stream_is_an_event(web, monkeypatch):
    extend, calls = Engine.extend_stream, []

    def breaks(self, state, steps):
        calls.append(state)
        if len(calls) > 1:
            raise RuntimeError("secret")
        return extend(self, state, 1)

    monkeypatch.setattr(Engine, "extend_stream", breaks)
    found = web.post("/v1/generate", json={"prompt": "What comes next?", "stream": True})
    name, details = events(found)[-1]
    assert (name, details["status"], len(calls)) == ("problem", 500, 2) and "secret" not in found.text


def test_a_model_that_does_not_translate_says_so():
    with client(lambda: dataclasses.replace(served(), translates=False)) as web:
        assert problem(web, "/v1/generate", {"text": "a", "target_language": "de"}, 422)["errors"][0]["field"] == "text"


@pytest.mark.parametrize(
    "body, field, says",
    [
        ({}, "", "give a prompt"),
        ({"prompt": "a", "text": "b"}, "", "give a prompt"),
        ({"text": "b"}, "", "belong together"),
        ({"text": "b", "target_language": "Germn"}, "target_language", "'German'"),
        ({"prompt": "a", "n_best": 2}, "", "beams"),
        ({"prompt": "a", "mode": "beam"}, "mode", "'beams'"),
        ({"prompt": "a", "stream": True, "mode": "beams"}, "", "greedy"),
        ({"prompt": "x" * 20_001}, "prompt", "20000"),
    ],
)
def test_a_question_that_is_none_is_told(web, body, field, says):
    details = problem(web, "/v1/generate", body, 422)
    assert details["errors"][0]["field"] == field and says in details["errors"][0]["message"]


def test_scores_are_the_engines(web):
    found = web.post("/v1/score", json={"prompt": "a comedy", "targets": ["Red River", "Blue"]}).json()
    expected = served().engine.score(["a comedy"] * 2, ["Red River", "Blue"])
    assert [each["total"] for each in found["scores"]] == pytest.approx([each.total for each in expected], abs=1e-4)
    assert [len(each["tokens"]) for each in found["scores"]] == [len(each.tokens) for each in expected]


def test_a_target_that_the_model_could_not_write_is_told(web):
    details = problem(web, "/v1/score", {"prompt": "a", "targets": ["a", "River " * 30]}, 422)
    assert details["errors"][0]["field"] == "targets[1]"


def test_what_a_prompt_loses_is_told(web):
    found = web.post("/v1/generate", json={"prompt": "漢字 " * 3 + "River " * 60}).json()
    assert any("not in the model's vocabulary" in each for each in found["warnings"])
    assert any("tokens; the model reads the first 32" in each for each in found["warnings"])


# ------------------------------------------------------------------ items and info


def test_items_are_found_by_the_beginnings_of_their_words(web):
    found = web.get("/v1/items", params={"q": "ri re", "limit": 3}).json()["items"]
    assert found == [{"item": "f100", "title": "Red River", "attributes": {"genre": [], "year": ["1980"]}}]
    assert len(web.get("/v1/items", params={"q": "r", "limit": 3}).json()["items"]) == 3
    assert web.get("/v1/items", params={"q": "r", "limit": 1000}).status_code == 422


def test_info_tells_what_can_be_asked(web):
    found = web.get("/v1/info").json()
    assert found["capabilities"] == {"recommend": True, "answer": True, "translate": True}
    assert found["items"] == len(FILMS) and found["limits"]["k"] == 10
    assert found["attributes"]["genre"] == ["Comedy", "Drama", "Horror", "War"]
    assert found["templates"] == {"history": 3, "interests": 2, "history+interests": 1}
    assert {"code": "de", "name": "German"} in found["languages"]


def test_openapi_describes_bodies_answers_and_problems(web):
    document = web.get("/openapi.json").json()
    recommend = document["paths"]["/v1/recommend"]["post"]
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names and names <= set(document["components"]["schemas"]) and "#/$defs" not in json.dumps(document)
    assert set(recommend["responses"]) >= {"200", "422", "429", "503", "504"}
    assert recommend["requestBody"]["content"]["application/json"]["schema"]
