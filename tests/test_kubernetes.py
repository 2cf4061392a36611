"""The manifests in deploy/kubernetes: built by kustomize, valid against the API's schemas, and true to the daemon."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from postgres_support import Postgres, needs_postgres

from daemon.config.load import load_settings
from daemon.database.engine import open_database
from daemon.jobs.store import JobStore, now
from daemon.web.access import OPEN_PATHS

HERE = Path(__file__).parents[1] / "deploy" / "kubernetes"
API = "1.33"


def plain() -> list[dict[str, Any]]:
    """The manifests as they lie there."""
    files = yaml.safe_load((HERE / "kustomization.yaml").read_text())["resources"]
    return [found for file in files for found in yaml.safe_load_all((HERE / file).read_text())]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in plain() if found["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    return {name: found["spec"]["template"]["spec"] for name, found in of_kind("Deployment").items()}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_what_refers_to_each_other() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(HERE)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {found["metadata"]["namespace"] for found in built if found["kind"] != "Namespace"} == {"braingemma"}
    [config] = [found for found in built if found["kind"] == "ConfigMap"]
    for found in built:
        if found["kind"] == "Deployment":
            volumes = found["spec"]["template"]["spec"]["volumes"]
            assert {v["configMap"]["name"] for v in volumes if "configMap" in v} == {config["metadata"]["name"]}
    services = [found["spec"]["selector"] for found in built if found["kind"] == "Service"]
    labels = [f["spec"]["template"]["metadata"]["labels"] for f in built if f["metadata"]["name"] == "receiver"]
    assert services
    assert all(selector.items() <= labels[0].items() for selector in services)


def test_the_api_takes_every_manifest() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    known = [found for found in plain() if "keda.sh" not in found["apiVersion"]]
    assert len(known) == 7
    for found in known:
        kubernetes_validate.validate(found, API, strict=True)
    broken = dict(known[-1], spec={"template": {}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, API, strict=True)


@pytest.mark.parametrize("name", ["receiver", "workers"])
def test_pods_have_no_privileges_and_write_to_volumes_only(name: str) -> None:
    pod = pods()[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    user = (HERE.parent / "Dockerfile").read_text()
    assert f"--uid {pod['securityContext']['runAsUser']} " in user
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/var/lib/braingemma", "/srv/braingemma-shared", "/etc/braingemma", "/tmp"} == mounted


def test_workers_have_a_gpu_each_and_the_receiver_is_alone_with_its_spool() -> None:
    receiver, workers = pods()["receiver"], pods()["workers"]
    assert workers["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in receiver["containers"][0]["resources"]["limits"]
    deployment = of_kind("Deployment")["receiver"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    claimed = {v["name"]: v.get("persistentVolumeClaim") for v in receiver["volumes"]}
    claims = {name: claim["claimName"] for name, claim in claimed.items() if claim}
    assert claims == {"spool": "spool", "shared": "shared"}
    assert set(of_kind("PersistentVolumeClaim")) == {"spool", "shared"}
    assert "spool" not in str(workers["volumes"])


def test_probes_ask_what_the_page_answers_without_a_token() -> None:
    container = pods()["receiver"]["containers"][0]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"dicom": 11112, "web": 8180}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in OPEN_PATHS
        assert asked["port"] == "web"
        assert asked["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


def test_the_configuration_and_its_secrets_make_sound_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"database-url": "postgresql://braingemma@db/braingemma", "web-token": "0123456789abcdef"}
    for name in ("receiver", "workers"):
        for variable in pods()[name]["containers"][0]["env"]:
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            assert secret is None or secret["name"] == "braingemma"
            monkeypatch.setenv(variable["name"], values[secret["key"]] if secret else variable["value"])
        settings = load_settings(HERE / "braingemma.toml")
        assert settings.engine.work is (name == "workers")
        assert settings.engine.database_url == values["database-url"]
        assert (settings.listener.port, settings.web.port) == (11112, 8180)
        monkeypatch.delenv("BRAINGEMMA_ENGINE__WORK", raising=False)


@needs_postgres
def test_the_scaler_asks_the_database_for_the_age_of_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = of_kind("ScaledObject")["workers"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind("Deployment")
    [trigger] = scaled["triggers"]
    assert trigger["authenticationRef"]["name"] in of_kind("TriggerAuthentication")
    postgres = Postgres()
    try:
        monkeypatch.setenv("BRAINGEMMA_ENGINE__DATABASE_URL", postgres.url)
        monkeypatch.setenv("BRAINGEMMA_STORAGE__FOLDER", str(tmp_path))
        monkeypatch.delenv("BRAINGEMMA_CONFIG", raising=False)
        monkeypatch.chdir(tmp_path)
        engine = open_database(load_settings(None))
        query = sa.text(trigger["metadata"]["query"])
        with engine.connect() as connection:
            assert float(connection.execute(query).scalar_one()) == 0
        JobStore(engine).add("a", study_uid="1.2", supersedes=None)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE jobs SET created = :then"), {"then": now() - 600})
            assert 590 < float(connection.execute(query).scalar_one()) < 4000
        engine.dispose()
    finally:
        postgres.stop()
