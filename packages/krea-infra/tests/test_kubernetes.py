"""What only the real API has: raw objects, paging, odd answers. `test_cluster.py` holds what all clusters share."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import kubernetes
import pytest
from krea_infra.apiserver import ApiServer, node_object
from krea_infra.interfaces import ConflictError, MissingError, RefusedError, UnreachableError
from krea_infra.kubernetes import KubernetesCluster, connect, job_object
from krea_infra.launch import launch
from krea_infra.nodes import FAULTY, OWNER, RUN, Taint
from krea_infra.select import Request


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def cluster(server: ApiServer) -> Iterator[KubernetesCluster]:
    with kubernetes.client.ApiClient(kubernetes.client.Configuration(host=server.url)) as client:
        yield KubernetesCluster(client, timeout_s=60.0)


def test_nodes_are_read_from_what_the_api_shows(server: ApiServer, cluster: KubernetesCluster, fleet) -> None:
    item = node_object(fleet(1)[0])
    item["metadata"]["labels"][FAULTY] = "lemon"
    item["spec"]["unschedulable"] = True
    item["spec"]["taints"] = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
    server.put("nodes", item)
    gpu = {"resources": {"requests": {"nvidia.com/gpu": "3"}}}
    for name, phase in (("runs", "Running"), ("done", "Succeeded"), ("starts", "Pending")):
        spec = {"nodeName": "node-0000", "containers": [gpu, {}], "initContainers": [{"resources": {}}]}
        server.put("pods", {"metadata": {"name": name, "namespace": "x"}, "spec": spec, "status": {"phase": phase}})
    server.put("pods", {"metadata": {"name": "unbound", "namespace": "x"}, "spec": {}, "status": {"phase": "Pending"}})
    (node,) = cluster.nodes()
    assert node.gpus == 8
    assert node.used == 6
    assert node.cordoned
    assert node.ready
    assert node.faults[0].kind == "lemon"
    assert node.taints == (Taint(key="node.kubernetes.io/unschedulable"),)


def test_a_bare_node_has_no_gpus_and_is_not_ready(server: ApiServer, cluster: KubernetesCluster) -> None:
    server.put("nodes", {"metadata": {"name": "bare"}})
    (node,) = cluster.nodes()
    assert (node.gpus, node.ready) == (0, False)


def test_lists_are_paged(server: ApiServer, cluster: KubernetesCluster, fleet) -> None:
    for node in fleet(1203):
        server.put("nodes", node_object(node))
    assert len({node.name for node in cluster.nodes()}) == 1203
    assert sum(path.startswith("/api/v1/nodes?") for _, path in server.requests) == 3


def test_foreign_fields_survive_a_claim(server: ApiServer, cluster: KubernetesCluster, fleet, job) -> None:
    item = node_object(fleet(1)[0])
    item["spec"]["fieldOfTheFuture"] = {"keep": [1, 2]}
    item["spec"]["taints"] = [{"key": "foreign", "value": "x", "effect": "PreferNoSchedule"}]
    item["metadata"]["annotations"] = {"note": "mine"}
    server.put("nodes", item)
    launch(cluster, Request(job=job(1, protect=True)))
    stored = server.get("nodes", "node-0000")
    assert stored is not None
    assert stored["spec"]["fieldOfTheFuture"] == {"keep": [1, 2]}
    assert stored["metadata"]["annotations"] == {"note": "mine"}
    assert [taint["key"] for taint in stored["spec"]["taints"]] == ["foreign", OWNER]


def test_every_write_to_a_node_carries_a_version(server: ApiServer, cluster: KubernetesCluster, fleet, job) -> None:
    for node in fleet(4):
        server.put("nodes", node_object(node))
    bodies = []
    handle = server.handle

    def record(method: str, url: str, body: dict, content_type: str) -> dict:
        bodies.append((method, url, body))
        return handle(method, url, body, content_type)

    server.handle = record
    launch(cluster, Request(job=job(2, protect=True)))
    patches = [body for method, url, body in bodies if method == "PATCH" and "/nodes/" in url]
    assert len(patches) == 4
    assert all(patch["metadata"]["resourceVersion"] for patch in patches)


def test_a_job_that_took_the_name_meanwhile_is_not_deleted(server: ApiServer, cluster: KubernetesCluster, job) -> None:
    cluster.submit(job(1))
    handle = server.handle

    def replaced(method: str, url: str, body: dict, content_type: str) -> dict:
        if method == "DELETE":
            handle("DELETE", url, {}, content_type)
            server.reap()
            server.put("jobs", job_object(job(1, owner="newcomer"), "default"))
        return handle(method, url, body, content_type)

    server.handle = replaced
    assert not cluster.delete(job(1))
    assert cluster.delete(job(1))
    stored = server.get("jobs", "pretrain", "default")
    assert stored is not None
    assert "deletionTimestamp" not in stored["metadata"]


def test_the_job_runs_on_the_claimed_nodes_only(job) -> None:
    item = job_object(job(4, held=True), "team")
    pod = item["spec"]["template"]["spec"]
    assert item["spec"]["suspend"] is True
    assert (item["spec"]["completions"], item["spec"]["completionMode"]) == (4, "Indexed")
    assert pod["nodeSelector"] == {OWNER: "owner-of-pretrain"}
    assert item["metadata"]["labels"] == {RUN: "pretrain", OWNER: "owner-of-pretrain"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (403, '{"message": "nodes is forbidden"}', RefusedError, "nodes is forbidden"),
        (404, "", MissingError, "404"),
        (409, "{}", ConflictError, "409"),
        (410, "[]", UnreachableError, "410"),
        (429, "slow down", UnreachableError, "429"),
        (500, "<html>", UnreachableError, "500"),
        (200, "<html>log in</html>", UnreachableError, "is not JSON"),
    ],
)
def test_odd_answers_become_one_clear_error(
    server: ApiServer, cluster: KubernetesCluster, status: int, body: str, error: type[Exception], text: str
) -> None:
    server.answers = lambda method, path: (status, body)
    with pytest.raises(error, match=text):
        cluster.nodes()


def test_no_server_and_a_silent_server_are_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        configuration = kubernetes.client.Configuration(host=address)
        configuration.retries = False
        with kubernetes.client.ApiClient(configuration) as client:
            with pytest.raises(UnreachableError, match="no answer"):
                KubernetesCluster(client, timeout_s=0.2).nodes()
    with kubernetes.client.ApiClient(configuration) as client:
        with pytest.raises(UnreachableError, match="no answer"):
            KubernetesCluster(client, timeout_s=0.2).nodes()


def test_no_configuration_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(RefusedError, match=r"no cluster is configured.*set KUBECONFIG"):
        connect()


def test_concurrent_launches_over_http(server: ApiServer, fleet, job) -> None:
    for node in fleet(16):
        server.put("nodes", node_object(node))
    jobs = [job(3, run=f"run-{i}") for i in range(5)]
    errors = []

    def start(one) -> None:
        with kubernetes.client.ApiClient(kubernetes.client.Configuration(host=server.url)) as client:
            try:
                launch(KubernetesCluster(client), Request(job=one), rounds=100)
            except Exception as error:  # noqa: BLE001  (shown below)
                errors.append(error)

    threads = [threading.Thread(target=start, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    owners = [server.get("nodes", node.name)["metadata"]["labels"].get(OWNER) for node in fleet(16)]  # type: ignore[index]
    assert {owner: owners.count(owner) for owner in owners if owner} == {one.owner: 3 for one in jobs}
    history: dict[str, str] = {}
    for item in server.versions:  # no node ever went from one owner straight to another
        if item.get("kind") == "Node":
            name, owner = item["metadata"]["name"], item["metadata"]["labels"].get(OWNER, "")
            assert not (history.get(name) and owner and history[name] != owner)
            history[name] = owner
