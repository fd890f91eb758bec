"""A strict little Kubernetes API over HTTP, in a thread: for tests and rehearsals without a cluster.

It is strict where carelessness costs claims: a stale resourceVersion is 409, a PUT without one is 422, a merge patch
replaces lists whole, an update that changes nothing keeps its version, bad taints and labels are 422, deletion honours
uid preconditions and leaves the object until `reap`. It has no scheduler, no admission and no watch.
"""

import json
import re
import threading
from collections.abc import Callable
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit
from uuid import NAMESPACE_URL, uuid5

from krea_infra.nodes import Node

__all__ = ["ApiServer", "node_object"]

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?"
)
_KINDS = {"nodes": "Node", "pods": "Pod", "jobs": "Job", "clusterqueues": "ClusterQueue"}
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_EFFECTS = {"NoSchedule", "PreferNoSchedule", "NoExecute"}

Object = dict[str, Any]


class _StatusError(Exception):
    """An HTTP status with Kubernetes' reason."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class _Place(NamedTuple):
    plural: str
    namespace: str
    name: str


class ApiServer:
    """Use as a context manager; `url` is where it listens. `answers` replaces answers: it is given method and path.

    `versions` lists the objects after each write, in order.
    """

    def __init__(self) -> None:
        self.answers: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.versions: list[Object] = []
        self._objects: dict[_Place, Object] = {}
        self._version = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, plural: str, item: Object) -> Object:
        """Write an object past all checks, as the rest of the cluster would."""
        with self._lock:
            metadata = item["metadata"]
            return self._store(_Place(plural, metadata.get("namespace", ""), metadata["name"]), deepcopy(item))

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        """The object as it is stored, or None."""
        with self._lock:
            return deepcopy(self._objects.get(_Place(plural, namespace, name)))

    def reap(self) -> None:
        """Finish deletions, as the garbage collector does when the last pod is gone."""
        with self._lock:
            for place in [p for p, item in self._objects.items() if "deletionTimestamp" in item["metadata"]]:
                del self._objects[place]

    def handle(self, method: str, url: str, body: Object, content_type: str) -> Object:
        """One request; raises _StatusError for statuses of 400 and above."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        match = _PATH.fullmatch(parts.path)
        if match is None or match["plural"] not in _KINDS:
            raise _StatusError(404, "NotFound", "the server could not find the requested resource")
        place = _Place(match["plural"], match["namespace"] or "", match["name"] or "")
        with self._lock:
            if method == "GET":
                return deepcopy(self._found(place)) if place.name else self._list(place, query)
            if method == "POST":
                return self._create(place, body)
            if method == "PUT":
                return self._replace(place, body)
            if method == "PATCH":
                return self._patch(place, body, content_type)
            return self._delete(place, body)

    def _found(self, place: _Place) -> Object:
        if place not in self._objects:
            raise _StatusError(404, "NotFound", f'{place.plural} "{place.name}" not found')
        return self._objects[place]

    def _list(self, place: _Place, query: dict[str, str]) -> Object:
        terms = [term for term in query.get("fieldSelector", "").split(",") if term]
        rows = [
            item
            for found, item in sorted(self._objects.items())
            if found.plural == place.plural
            and place.namespace in ("", found.namespace)
            and all(_selects(item, term) for term in terms)
        ]
        start, limit = int(query.get("continue", 0)), int(query.get("limit", len(rows) or 1))
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(rows):
            metadata["continue"] = str(start + limit)
        items = deepcopy(rows[start : start + limit])
        return {"kind": f"{_KINDS[place.plural]}List", "apiVersion": "v1", "metadata": metadata, "items": items}

    def _create(self, place: _Place, body: Object) -> Object:
        place = place._replace(name=body["metadata"]["name"])
        if place in self._objects:
            raise _StatusError(409, "AlreadyExists", f'{place.plural} "{place.name}" already exists')
        _check(body)
        return self._store(place, body)

    def _replace(self, place: _Place, body: Object) -> Object:
        current, version = self._found(place), body["metadata"].get("resourceVersion")
        if version is None:
            raise _StatusError(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
        _compare(current, version)
        _check(body)
        return self._store(place, body)

    def _patch(self, place: _Place, body: Object, content_type: str) -> Object:
        if content_type != "application/merge-patch+json":
            raise _StatusError(415, "UnsupportedMediaType", f"content type {content_type!r} is not known here")
        current = self._found(place)
        if version := body.get("metadata", {}).get("resourceVersion"):
            _compare(current, version)
        changed = _merge(current, body)
        _check(changed)
        return self._store(place, changed)

    def _delete(self, place: _Place, body: Object) -> Object:
        current = self._found(place)
        uid = body.get("preconditions", {}).get("uid")
        if uid is not None and uid != current["metadata"]["uid"]:
            raise _StatusError(409, "Conflict", f"uid in precondition: {uid}, in object: {current['metadata']['uid']}")
        changed = deepcopy(current)
        changed["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        return self._store(place, changed)

    def _store(self, place: _Place, item: Object) -> Object:
        item = deepcopy(item)
        before = self._objects.get(place)
        item["metadata"].setdefault("uid", str(uuid5(NAMESPACE_URL, f"{place}{self._version}")))
        if before is not None:
            item["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            item["metadata"]["uid"] = before["metadata"]["uid"]
        if item != before:
            self._version += 1
            item["metadata"]["resourceVersion"] = str(self._version)
            self._objects[place] = item
            self.versions.append(deepcopy(item))
        return deepcopy(item)


def node_object(node: Node) -> Object:
    """A node as the API would show it; faults and versions are left to the labels and the server."""
    metadata: Object = {"name": node.name, "labels": dict(node.labels)}
    spec: Object = {"taints": [{"key": t.key, "value": t.value, "effect": t.effect} for t in node.taints]}
    if node.cordoned:
        spec["unschedulable"] = True
    status: Object = {
        "allocatable": {"nvidia.com/gpu": str(node.gpus)},
        "conditions": [{"type": "Ready", "status": "True" if node.ready else "False"}],
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status}


def _selects(item: Object, term: str) -> bool:
    path, negated, value = term.partition("!=")
    if not negated:
        path, _, value = term.partition("=")
    found: Any = item
    for name in path.split("."):
        found = found.get(name, "") if isinstance(found, dict) else ""
    return (found != value) if negated else (found == value)


def _compare(current: Object, version: str) -> None:
    if version != current["metadata"]["resourceVersion"]:
        name = current["metadata"]["name"]
        text = f'Operation cannot be fulfilled on "{name}": the object has been modified; apply to the latest version'
        raise _StatusError(409, "Conflict", text)


def _check(item: Object) -> None:
    for key, value in item["metadata"].get("labels", {}).items():
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise _StatusError(422, "Invalid", f"metadata.labels: Invalid value: {value!r} for {key}")
    for taint in item.get("spec", {}).get("taints", ()):
        if taint.get("effect") not in _EFFECTS:
            raise _StatusError(422, "Invalid", f"spec.taints.effect: Unsupported value: {taint.get('effect')!r}")


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, dictionaries merge, everything else replaces."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    merged = deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            server.requests.append((self.command, self.path))
            if answer := server.answers(self.command, self.path):
                self._send(answer[0], answer[1].encode(), "text/html")
                return
            content_type = self.headers.get("Content-Type", "").partition(";")[0]
            try:
                code, body = 200, server.handle(self.command, self.path, json.loads(text or b"{}"), content_type)
            except _StatusError as error:
                code = error.code
                body = {
                    "kind": "Status",
                    "status": "Failure",
                    "reason": error.reason,
                    "message": str(error),
                    "code": code,
                }
            self._send(code, json.dumps(body).encode(), "application/json")

        def _send(self, code: int, data: bytes, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  (the names that http.server asks for)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return Handler
