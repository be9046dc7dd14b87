"""Health, metrics, limits, keys, the page; another version in place of the one that is served."""

import json
import logging
import threading
import time

import pytest
from starlette.testclient import TestClient

from t5x_lite.serving.app import create_app
from t5x_lite.serving.settings import Settings
from tests.recommendation import films
from tests.serving.models import SETTINGS, client, damaged, save_run, served

TOKEN = {"Authorization": "Bearer let-me"}


def metric(web, line):
    """The number that /metrics has behind a name and its labels."""
    lines = [each for each in web.get("/metrics").text.splitlines() if each.startswith(f"{line} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


# ------------------------------------------------------------------ health, metrics, log


def test_before_the_first_version_it_lives_and_is_not_ready():
    with client(served=None, model_dir="runs/nowhere") as web:
        assert web.get("/health/live").status_code == 200
        assert web.get("/health/ready").status_code == 503
        found = web.post("/v1/recommend", json={})
        assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1
        assert web.get("/v1/info").status_code == 503


def test_what_is_asked_is_counted():
    with client() as web:
        assert web.get("/health/ready").json() == {"status": "ready"}
        web.post("/v1/recommend", json={"user": "ben"})
        web.post("/v1/recommend", json={})
        web.post("/v1/recommend", json={"user": "ben", "filters": ["year>2050"]})
        web.post("/v1/recommend", json={"user": "nobody"})
        web.get("/favicon.ico")
        assert metric(web, 't5x_lite_requests_total{route="/v1/recommend",status="200"}') == 3
        assert metric(web, 't5x_lite_requests_total{route="/v1/recommend",status="422"}') == 1
        assert metric(web, 't5x_lite_requests_total{route="other",status="404"}') == 1
        assert metric(web, 't5x_lite_request_seconds_count{route="/v1/recommend"}') == 4
        assert metric(web, 't5x_lite_stage_seconds_count{route="/v1/recommend",stage="decode"}') == 3
        assert metric(web, "t5x_lite_batch_size_count") == 4
        assert metric(web, "t5x_lite_fallbacks_total") == 1 and metric(web, "t5x_lite_short_lists_total") == 1
        assert metric(web, "t5x_lite_ready") == 1 and metric(web, "t5x_lite_queue_depth") == 0
        assert metric(web, "t5x_lite_compilations") == served().compile_count > 0
        assert metric(web, 't5x_lite_version{catalogue_version="films",model_version="7-random"}') == 1


def test_each_request_is_a_line_of_the_log_with_its_id(caplog):
    with client() as web, caplog.at_level(logging.INFO, "t5x_lite.access"):
        found = web.get("/v1/items?q=secret", headers={"X-Request-ID": "from-a-proxy"})
        assert found.headers["x-request-id"] == "from-a-proxy"
        other = web.get("/health/live", headers={"X-Request-ID": "a\tb"})
        assert len(other.headers["x-request-id"]) == 32
    line = json.loads(caplog.records[0].message)
    assert (line["request_id"], line["path"], line["status"]) == ("from-a-proxy", "/v1/items", 200)
    assert line["ms"] > 0 and "secret" not in caplog.text


# ------------------------------------------------------------------ limits, keys


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not():
    def parts():
        for _ in range(20):
            yield b" " * 100

    with client(max_body=1000) as web:
        assert web.post("/v1/recommend", content=b" " * 1001).status_code == 413
        assert web.post("/v1/recommend", content=parts()).status_code == 413
        assert web.post("/v1/recommend", json={"user": "ben"}).status_code == 200


def test_a_full_queue_is_a_429_that_says_when_to_come_again(monkeypatch):
    with client(max_queue=1, max_batch=1) as web:
        release, began = threading.Event(), threading.Event()
        answer = type(served().recommender).answer

        def slow(self, requests):
            began.set()
            assert release.wait(20)
            return answer(self, requests)

        monkeypatch.setattr(type(served().recommender), "answer", slow)
        statuses = []

        def ask():
            statuses.append(web.post("/v1/recommend", json={"user": "ben"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert began.wait(10)
        threads[1].start()
        while metric(web, "t5x_lite_queue_depth") < 1:
            time.sleep(0.01)
        refused = web.post("/v1/recommend", json={"user": "ben"})
        release.set()
        for thread in threads:
            thread.join()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert statuses == [200, 200] and metric(web, 't5x_lite_rejected_total{reason="queue_full"}') == 1


def test_a_key_is_asked_for_where_one_is_set():
    with client(api_key="open-sesame") as web:
        for header in ({}, {"Authorization": "Bearer open"}, {"Authorization": "open-sesame"}):
            found = web.post("/v1/recommend", json={}, headers=header)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        assert web.post("/v1/recommend", json={}, headers={"Authorization": "Bearer open-sesame"}).status_code == 200
        assert web.get("/health/ready").status_code == 200


def test_other_sites_may_ask_only_where_they_are_named():
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with client() as web:
        assert "access-control-allow-origin" not in web.options("/v1/recommend", headers=asks).headers
    with client(cors_origins=["https://shop.example"]) as web:
        found = web.options("/v1/recommend", headers=asks)
        assert found.headers["access-control-allow-origin"] == "https://shop.example"
    with client(cors_origins=["https://shop.example"], api_key="open-sesame") as web:
        assert web.options("/v1/recommend", headers=asks).status_code == 200
        refused = web.post("/v1/recommend", json={}, headers={"Origin": "https://shop.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://shop.example"


def test_the_page_comes_from_memory_and_nothing_else_of_the_disk_does():
    with client() as web:
        found = web.get("/")
        assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in found.headers["content-security-policy"]
        for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "__init__.py"):
            assert web.get(f"/page/{name}").status_code == 404


# ------------------------------------------------------------------ another version


@pytest.fixture
def run(tmp_path):
    """(a link to a run folder, what turns it to another run)."""
    link = tmp_path / "current"

    def turn(folder):
        other = tmp_path / "next"
        other.symlink_to(folder)
        other.replace(link)

    turn(save_run(tmp_path / "one"))
    return link, turn


def starting(link, **settings):
    """A client of an application that loads the run by itself."""
    settings = {"admin_token": "let-me", "admin_anywhere": True, "model_dir": str(link), "max_batch": 1} | settings
    return TestClient(create_app(Settings(**(SETTINGS | settings))))


def wait_until_ready(web):
    for _ in range(1200):
        if web.get("/health/ready").status_code == 200:
            return
        time.sleep(0.05)
    raise AssertionError("never ready")


def names(web):
    found = web.get("/v1/info").json()
    return found["model_version"], found["catalogue_version"]


def test_reloading_takes_another_run_as_a_whole_and_refuses_what_is_damaged(run, tmp_path):
    link, turn = run
    with starting(link) as web:
        wait_until_ready(web)
        first, compiled = names(web), metric(web, "t5x_lite_compilations")
        assert web.post("/admin/reload", headers=TOKEN).json()["changed"] is False

        turn(save_run(tmp_path / "two", seed=1))
        found = web.post("/admin/reload", headers=TOKEN).json()
        assert found["changed"] is True and names(web) == (found["model_version"], found["catalogue_version"])
        second = names(web)
        assert second[0] != first[0] and second[1] == first[1]
        assert metric(web, "t5x_lite_compilations") == compiled

        broken = {
            "no numbers": save_run(tmp_path / "nan", weights=damaged),
            "other items": save_run(tmp_path / "items", items_sha256="0" * 64),
            "another vocabulary": save_run(tmp_path / "words", vocabulary={"kind": "x", "sha256": "0" * 64, "size": 9}),
            "nothing": tmp_path / "nothing",
            "other tasks": save_run(tmp_path / "tasks", tasks=["recommend_next", "qa_capital"]),
        }
        (save_run(tmp_path / "cut") / "items" / "histories.npz").write_bytes(b"PK")
        broken["half a file"] = tmp_path / "cut"
        for what, folder in broken.items():
            turn(folder)
            refused = web.post("/admin/reload", headers=TOKEN)
            assert refused.status_code == 409, what
            assert names(web) == second and web.post("/v1/recommend", json={"user": "ben"}).status_code == 200, what
        assert metric(web, 't5x_lite_reloads_total{result="refused"}') == len(broken)


def test_only_who_may_reload_can():
    with client() as web:
        assert web.post("/admin/reload", headers=TOKEN).status_code == 404
    with client(admin_token="let-me") as web:  # the test's client is no address of this machine
        assert web.post("/admin/reload", headers=TOKEN).status_code == 403
    with client(admin_token="let-me", admin_anywhere=True) as web:
        assert web.post("/admin/reload").status_code == 401
        assert web.post("/admin/reload", headers={"Authorization": "Bearer let"}).status_code == 401


def test_a_catalogue_of_its_own_is_what_is_offered_and_changes_without_compiling(run, tmp_path):
    link, _ = run
    shop = tmp_path / "shop"
    films.FILMS.take(range(20)).save(shop)
    with starting(link, catalogue=str(shop / "items.csv")) as web:
        wait_until_ready(web)
        compiled, first = metric(web, "t5x_lite_compilations"), names(web)
        asked = {"history": [films.TITLES[30]], "k": 10, "candidates": [films.TITLES[30], *films.TITLES[15:25]]}
        found = web.post("/v1/recommend", json=asked).json()
        assert {each["title"] for each in found["items"]} == set(films.TITLES[15:20])

        (shop / "items.csv").write_text((shop / "items.csv").read_text() + "new,A Brand New Film,War,2026\n")
        assert web.post("/admin/reload", headers=TOKEN).json()["changed"] is True
        found = web.post("/v1/recommend", json={"interests": "horror", "filters": ["year>=2026"]}).json()
        assert [each["title"] for each in found["items"]] == ["A Brand New Film"]
        assert names(web)[0] == first[0] and names(web)[1] != first[1]
        assert metric(web, "t5x_lite_compilations") == compiled


def test_a_watched_folder_is_loaded_when_it_changes(run, tmp_path):
    link, turn = run
    with starting(link, watch=0.1) as web:
        wait_until_ready(web)
        first = names(web)
        turn(save_run(tmp_path / "two", seed=1))
        for _ in range(600):
            if names(web) != first:
                return
            time.sleep(0.1)
        raise AssertionError("the new version was never served")


def test_requests_in_flight_end_on_the_version_that_they_began_with(run, tmp_path, monkeypatch):
    link, turn = run
    with starting(link) as web:
        wait_until_ready(web)
        first = names(web)
        release, began = threading.Event(), threading.Event()
        old = web.app.state.versions.current.recommender
        answer = type(old).answer

        def slow(self, requests):
            if self is old:
                began.set()
                assert release.wait(60)
            return answer(self, requests)

        monkeypatch.setattr(type(old), "answer", slow)
        found = []
        thread = threading.Thread(target=lambda: found.append(web.post("/v1/recommend", json={"user": "ben"}).json()))
        thread.start()
        assert began.wait(10)
        turn(save_run(tmp_path / "two", seed=1))
        assert web.post("/admin/reload", headers=TOKEN).json()["changed"] is True
        release.set()
        thread.join()
        assert found[0]["model_version"] == first[0] != names(web)[0]
