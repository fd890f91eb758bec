"""The strictness that the tests of launches and quotas rely on."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from krea_infra.apiserver import ApiServer

MERGE = "application/merge-patch+json"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        taints = [{"key": "a", "value": "1", "effect": "NoSchedule"}]
        server.put("nodes", {"metadata": {"name": "n", "labels": {"x": "1"}}, "spec": {"taints": taints}})
        yield server


def call(
    server: ApiServer, method: str, path: str, body: Any = None, kind: str = "application/json"
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_versions_move_only_with_changes(server: ApiServer) -> None:
    path = "/api/v1/nodes/n"
    _, first = call(server, "GET", path)
    _, same = call(server, "PATCH", path, {"metadata": {"labels": {"x": "1"}}}, MERGE)
    assert same == first
    code, second = call(server, "PATCH", path, {"metadata": {"labels": {"x": None, "y": "2"}}}, MERGE)
    assert code == 200
    assert second["metadata"]["labels"] == {"y": "2"}
    assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    old = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"], "labels": {"z": "3"}}}
    code, status = call(server, "PATCH", path, old, MERGE)
    assert (code, status["reason"]) == (409, "Conflict")
    assert call(server, "GET", path)[1] == second


def test_a_merge_patch_replaces_lists_whole(server: ApiServer) -> None:
    taints = [{"key": "b", "effect": "NoExecute"}]
    _, node = call(server, "PATCH", "/api/v1/nodes/n", {"spec": {"taints": taints}}, MERGE)
    assert node["spec"]["taints"] == taints


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "code"),
    [
        ("GET", "/api/v1/nodes/none", None, "", 404),
        ("GET", "/api/v1/dragons", None, "", 404),
        ("GET", "/", None, "", 404),
        ("PATCH", "/api/v1/nodes/n", {}, "application/json-patch+json", 415),
        ("PATCH", "/api/v1/nodes/n", {"metadata": {"labels": {"x": "no spaces"}}}, MERGE, 422),
        ("PATCH", "/api/v1/nodes/n", {"spec": {"taints": [{"key": "a", "effect": "Maybe"}]}}, MERGE, 422),
        ("PUT", "/api/v1/nodes/n", {"metadata": {"name": "n"}}, "application/json", 422),
        ("PUT", "/api/v1/nodes/n", {"metadata": {"name": "n", "resourceVersion": "0"}}, "application/json", 409),
        ("POST", "/api/v1/nodes", {"metadata": {"name": "n"}}, "application/json", 409),
        ("DELETE", "/api/v1/nodes/n", {"preconditions": {"uid": "other"}}, "application/json", 409),
    ],
)
def test_refusals(server: ApiServer, method: str, path: str, body: Any, kind: str, code: int) -> None:
    before = server.get("nodes", "n")
    found, status = call(server, method, path, body, kind)
    assert found == code
    assert status["kind"] == "Status"
    assert server.get("nodes", "n") == before


def test_deletion_waits_for_the_reaper(server: ApiServer) -> None:
    assert call(server, "DELETE", "/api/v1/nodes/n", {})[0] == 200
    assert "deletionTimestamp" in call(server, "GET", "/api/v1/nodes/n")[1]["metadata"]
    server.reap()
    assert call(server, "GET", "/api/v1/nodes/n")[0] == 404


def test_lists_are_cut_into_pages_and_selected_by_fields(server: ApiServer) -> None:
    for index in range(5):
        phase = "Running" if index % 2 else "Failed"
        server.put("pods", {"metadata": {"name": f"p{index}", "namespace": "x"}, "status": {"phase": phase}})
    _, page = call(server, "GET", "/api/v1/pods?limit=2")
    assert [item["metadata"]["name"] for item in page["items"]] == ["p0", "p1"]
    _, rest = call(server, "GET", f"/api/v1/pods?limit=9&continue={page['metadata']['continue']}")
    assert len(rest["items"]) == 3
    assert "continue" not in rest["metadata"]
    _, failed = call(server, "GET", "/api/v1/namespaces/x/pods?fieldSelector=status.phase!=Running")
    assert len(failed["items"]) == 3
    assert call(server, "GET", "/api/v1/namespaces/y/pods")[1]["items"] == []
