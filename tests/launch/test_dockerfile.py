"""The Dockerfile against the repository: the flags of its server, the files that it copies, the port that it asks."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from t5x_lite import serve
from t5x_lite.serving import server

TEXT = re.sub(r"\\\n\s*", " ", Path("launch/Dockerfile").read_text())


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", TEXT, re.MULTILINE)


def command(name: str) -> list[str]:
    (found,) = instructions(name)
    return json.loads(found[found.index("[") :])


@pytest.fixture
def started(monkeypatch) -> dict:
    """What the entry point starts."""
    found = {}
    monkeypatch.setattr(server, "run", lambda settings, **others: found.update(others, settings=settings))
    python, switch, module, *flags = command("ENTRYPOINT")
    assert [python, switch, module] == ["python", "-m", serve.__name__]
    serve.main(flags)
    return found


def test_the_entry_point_serves_the_volume_to_other_machines(started):
    assert started["settings"].model_dir == instructions("VOLUME")[0]
    assert started["host"] == "0.0.0.0"
    assert str(started["port"]) == instructions("EXPOSE")[0]


def test_the_health_check_asks_the_port_that_is_served(started):
    script = command("HEALTHCHECK")[2]
    compile(script, "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{started['port']}/health/live" in script


def test_installs_the_locked_versions_and_the_extra_that_is_there():
    installs = re.findall(r"pip install .*?(?= &&|$)", TEXT, re.MULTILINE)
    assert installs and all("-c requirements.lock" in each and "'.[serve]'" in each for each in installs)
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"fastapi", "uvicorn"} <= {re.match(r"[\w-]+", each)[0] for each in extras["serve"]}


def test_what_is_copied_is_not_ignored_and_exists():
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert copied and all(Path(word).exists() for word in copied)
    allowed = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied)


def test_runs_as_the_user_that_kubernetes_expects():
    (user,) = instructions("USER")
    deployment = yaml.safe_load(Path("launch/kubernetes/deployment.yaml").read_text())
    assert int(user) == deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] != 0
    assert f"--uid {user}" in TEXT
