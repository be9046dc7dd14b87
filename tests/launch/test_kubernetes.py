"""The manifests against the server: what they name must be there."""

from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient

from t5x_lite import serve
from t5x_lite.serving import server
from t5x_lite.serving.app import create_app
from t5x_lite.serving.settings import Settings

FOLDER = Path("launch/kubernetes")
NAME = {"app.kubernetes.io/name": "t5x-lite"}


def manifest(name: str) -> dict:
    (found,) = yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
    return found


@pytest.fixture
def client():
    # Without its start: nothing is loaded, and the routes are there.
    return TestClient(create_app(Settings(model_dir="not/there")))


@pytest.fixture
def pod() -> dict:
    return manifest("deployment")["spec"]["template"]


@pytest.fixture
def container(pod) -> dict:
    (only,) = pod["spec"]["containers"]
    return only


def test_every_manifest_has_its_kind_and_speaks_of_the_same_pods(pod):
    kinds = {path.stem: manifest(path.stem)["kind"] for path in FOLDER.glob("*.yaml")}
    assert kinds == {
        "deployment": "Deployment",
        "service": "Service",
        "hpa": "HorizontalPodAutoscaler",
        "pdb": "PodDisruptionBudget",
    }
    assert pod["metadata"]["labels"] == NAME
    assert manifest("service")["spec"]["selector"] == NAME
    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == NAME
    assert manifest("pdb")["spec"]["selector"]["matchLabels"] == NAME
    assert manifest("hpa")["spec"]["scaleTargetRef"]["name"] == manifest("deployment")["metadata"]["name"]
    assert "replicas" not in manifest("deployment")["spec"]


def test_probes_ask_routes_that_tell_loading_from_dead(container, client):
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths.keys() == {"startupProbe", "readinessProbe", "livenessProbe"}
    statuses = {probe: client.get(path).status_code for probe, path in paths.items()}
    assert statuses == {"startupProbe": 503, "readinessProbe": 503, "livenessProbe": 200}  # of a server that loads


def test_metrics_are_where_prometheus_looks_and_have_what_the_replicas_are_counted_by(pod, client):
    annotations = pod["metadata"]["annotations"]
    found = client.get(annotations["prometheus.io/path"])
    assert found.status_code == 200
    (metric,) = manifest("hpa")["spec"]["metrics"]
    assert f"# TYPE {metric['pods']['metric']['name']} gauge" in found.text
    assert float(metric["pods"]["target"]["averageValue"]) < Settings(model_dir="any").max_queue


def test_ports(pod, container):
    (port,) = container["ports"]
    (exposed,) = manifest("service")["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    assert all(container[probe]["httpGet"]["port"] == port["name"] for probe in container if probe.endswith("Probe"))


def test_flags_are_the_servers_and_a_pod_has_time_to_drain(pod, container, monkeypatch):
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], "secret")
    started = {}
    monkeypatch.setattr(server, "run", lambda settings, **others: started.update(others, settings=settings))
    serve.main(["--model_dir=/model", *container["args"]])
    settings, drain = started["settings"], started["drain"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain + settings.timeout + 5
    # Long enough for the service to see that it is not ready.
    probe = container["readinessProbe"]
    assert drain > probe["periodSeconds"] * probe["failureThreshold"]
    assert (settings.api_key, settings.admin_token, settings.admin_anywhere) == ("secret", "secret", False)


def test_what_is_written_has_a_place_and_nothing_else_is_writable(pod, container):
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/model"]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["spec"]["volumes"]}
