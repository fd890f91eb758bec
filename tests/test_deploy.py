"""The manifests say what Kubernetes, PostgreSQL and our own commands understand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from krea_curator.cli import app
from krea_data.krablet import up
from krea_data.krablet.connection import Shard
from kubernetes import client
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "krablet"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KINDS = {
    "ConfigMap": client.V1ConfigMap,
    "Deployment": client.V1Deployment,
    "HorizontalPodAutoscaler": client.V2HorizontalPodAutoscaler,
    "Job": client.V1Job,
    "Namespace": client.V1Namespace,
    "PersistentVolumeClaim": client.V1PersistentVolumeClaim,
    "PodDisruptionBudget": client.V1PodDisruptionBudget,
    "Secret": client.V1Secret,
    "Service": client.V1Service,
    "StatefulSet": client.V1StatefulSet,
}
FOREIGN = {"ScaledObject", "Kustomization"}


def objects() -> list[tuple[str, dict[str, Any]]]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [(path.name, one) for path in files for one in yaml.safe_load_all(path.read_text())]


OBJECTS = objects()
IDS = [f"{name} {one['kind']}" for name, one in OBJECTS]


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """File, labels and specification of every pod."""
    for name, one in OBJECTS:
        if "template" in one.get("spec", {}):
            template = one["spec"]["template"]
            yield name, template["metadata"]["labels"], template["spec"]


def commands() -> list[tuple[str, list[str]]]:
    """What our image is run with, wherever it is."""
    found = [(f"compose {n}", s["command"]) for n, s in COMPOSE["services"].items() if s["image"] == "krea-curate"]
    for name, _, spec in pods():
        found += [(name, box["args"]) for box in spec["containers"] if box["image"] == "krea-curate"]
    return found


@pytest.mark.parametrize(("name", "one"), OBJECTS, ids=IDS)
def test_kubernetes_knows_every_field(name: str, one: dict[str, Any]) -> None:
    if one["kind"] in FOREIGN:
        pytest.skip("its kind is not of Kubernetes itself")
    api = client.ApiClient()
    read = api._ApiClient__deserialize(one, KINDS[one["kind"]])  # type: ignore[attr-defined]
    assert api.sanitize_for_serialization(read) == one  # a field that is not known would be gone


def test_a_wrong_field_would_be_seen() -> None:
    api = client.ApiClient()
    wrong = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "label": {}}}
    assert api.sanitize_for_serialization(api._ApiClient__deserialize(wrong, client.V1Namespace)) != wrong  # type: ignore[attr-defined]


@pytest.mark.parametrize(("where", "words"), commands(), ids=[where for where, _ in commands()])
def test_every_command_is_one_of_ours(where: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command, path = get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[path.pop(0)]  # type: ignore[attr-defined]
    flags = {flag for one in command.params for flag in one.opts}
    assert {word.partition("=")[0] for word in path} <= flags
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    context = command.make_context("test", [word for word in path if not word.startswith("--dsn=@")])
    assert context.params


def test_ports_mounts_and_secrets_fit_together() -> None:
    labels = [labels for _, labels, _ in pods()]
    for _, one in OBJECTS:
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), one["metadata"]["name"]
    names = {(one["kind"], one["metadata"].get("name")) for _, one in OBJECTS if "metadata" in one}
    for name, found, spec in pods():
        ports: dict[str, int] = {}
        for box in [*spec.get("initContainers", ()), *spec["containers"]]:
            claims = {
                one["metadata"]["name"] for _, o in OBJECTS for one in o.get("spec", {}).get("volumeClaimTemplates", ())
            }
            assert {mount["name"] for mount in box["volumeMounts"]} <= {v["name"] for v in spec["volumes"]} | claims, (
                name
            )
            ports |= {port["name"]: port["containerPort"] for port in box.get("ports", ())}
            said = {int(port) for word in box.get("args", ()) for port in re.findall(r"0\.0\.0\.0:(\d+)$", word)}
            assert box["image"] != "krea-curate" or said == {p["containerPort"] for p in box.get("ports", ())}, name
            for probe in ("readinessProbe", "livenessProbe"):
                if "httpGet" in box.get(probe, {}):
                    assert box[probe]["httpGet"]["path"] in ("/ready", "/health")
                    assert box[probe]["httpGet"]["port"] in ports
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in names
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        for _, one in OBJECTS:
            if one["kind"] == "Service" and one["spec"]["selector"].items() <= found.items():
                for port in one["spec"]["ports"]:
                    assert ports[port["targetPort"]] == port["port"]
    kept = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    assert set(kept) == {name for name, _ in OBJECTS} - {"kustomization.yaml", "secrets.example.yaml", "job.yaml"}


def test_the_template_of_secrets_names_the_shards() -> None:
    (secret,) = [one for _, one in OBJECTS if one["kind"] == "Secret" and "dsns" in one["stringData"]]
    (shards,) = [one for _, one in OBJECTS if one["kind"] == "StatefulSet"]
    dsns = secret["stringData"]["dsns"].splitlines()
    service = shards["spec"]["serviceName"]
    assert len(dsns) == shards["spec"]["replicas"]
    for number, dsn in enumerate(dsns):
        assert f"host={shards['metadata']['name']}-{number}.{service} " in dsn


def test_compose_refers_to_what_is_there() -> None:
    assert COMPOSE.keys() <= {"name", "services", "volumes", "secrets", "x-shard", "x-krea"}
    for name, service in COMPOSE["services"].items():
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys(), name
        assert set(service.get("depends_on", ())) <= COMPOSE["services"].keys(), name
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= COMPOSE["volumes"].keys(), name
        listening = {port for word in service.get("command", ()) for port in re.findall(r"0\.0\.0\.0:(\d+)$", word)}
        assert {port.rpartition(":")[2] for port in service.get("ports", ())} <= listening, name
    build = COMPOSE["services"]["reader"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_the_image_is_built_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "--package krea-curate" in text
    assert 'ENTRYPOINT ["krea-curate"]' in text
    assert "USER 1000:1000" in text


@pytest.mark.postgres
def test_postgresql_knows_every_setting(tmp_path: Path) -> None:
    conf = next(one for _, one in OBJECTS if one["kind"] == "ConfigMap")["data"]["krablet.conf"]
    wanted = dict(line.split(" = ") for line in conf.splitlines())
    for word in COMPOSE["services"]["shard-0"]["command"][1:]:
        name, _, value = word.removeprefix("-c").partition("=")
        wanted.setdefault(name, value)
    with up(tmp_path / "krablet") as cluster:
        shard = Shard(0, cluster.dsns[0], 10.0)
        known = {name for (name,) in shard.attempt(lambda c: c.execute("select name from pg_settings").fetchall())}
        assert wanted.keys() <= known
        for name in wanted.keys() - {"wal_compression"}:  # which methods it has depends on how it was built
            text = f"alter system set {name} = {wanted[name] if wanted[name][0] == chr(39) else repr(wanted[name])}"
            shard.attempt(lambda c, text=text: c.execute(text.encode()))
        shard.close()
