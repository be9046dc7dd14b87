"""The Dockerfile against the repository: the flags of its programs, the files that it copies, the port that it asks."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from t5x_lite import serve, train
from t5x_lite.serving import server
from t5x_lite.training import loop

TEXT = re.sub(r"\\\n\s*", " ", Path("launch/Dockerfile").read_text())
# {"serve": what its stage says, ...}, in the order of the file.
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def instructions(name: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def command(name: str, stage: str = "serve") -> list[str]:
    (found,) = instructions(name, STAGES[stage])
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


def test_a_build_that_names_no_target_serves():
    assert list(STAGES) == ["source", "build_train", "build_serve", "train", "serve"]
    for stage in ("train", "serve"):
        assert f"--from=build_{stage} /opt/venv /opt/venv" in instructions("COPY", STAGES[stage])


def test_the_entry_point_serves_the_volume_to_other_machines(started):
    assert started["settings"].model_dir == instructions("VOLUME")[0]
    assert started["host"] == "0.0.0.0"
    assert str(started["port"]) == instructions("EXPOSE")[0]


def test_the_health_check_asks_the_port_that_is_served(started):
    script = command("HEALTHCHECK")[2]
    compile(script, "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{started['port']}/health/live" in script


@pytest.mark.parametrize("stage, extra", [("build_serve", "'.[serve]'"), ("build_train", '".[${EXTRA}]"')])
def test_installs_the_locked_versions_and_the_extra_that_is_there(stage, extra):
    installs = re.findall(r"pip install .*?(?= &&|$)", STAGES[stage], re.MULTILINE)
    assert len(installs) == 2 and all("-c requirements.lock" in each and extra in each for each in installs)
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"fastapi", "uvicorn"} <= {re.match(r"[\w-]+", each)[0] for each in extras["serve"]}
    assert instructions("ARG", STAGES["build_train"]) == ["EXTRA=tpu"] and {"tpu", "gpu"} <= extras.keys()


def test_the_train_image_trains_what_the_repository_configures(monkeypatch):
    """Its entry point takes a gin file by the name that it has in the image."""
    seen = {}
    monkeypatch.setattr(loop, "train", lambda config, **others: seen.update(config=config, **others) or True)
    python, switch, module, *flags = command("ENTRYPOINT", "train")
    assert [python, switch, module, flags] == ["python", "-m", train.__name__, []]
    assert "gin gin" in instructions("COPY", STAGES["train"])
    train.main(["--gin_file=gin/qa.gin", "--gin.MODEL_DIR=gs://bucket/run", "--dry_run"])
    assert seen["config"].model_dir == "gs://bucket/run" and seen["dry_run"]


def test_what_is_copied_is_not_ignored_and_exists():
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied and all(Path(word).exists() for word in copied)
    allowed = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied


def test_runs_as_the_user_that_kubernetes_expects():
    (user,) = instructions("USER")
    deployment = yaml.safe_load(Path("launch/kubernetes/deployment.yaml").read_text())
    assert int(user) == deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] != 0
    assert f"--uid {user}" in TEXT
