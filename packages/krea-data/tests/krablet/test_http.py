"""The reader over HTTP, asked by httpx and read by pyarrow, neither of which is ours."""

import io
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow as pa
import pytest
import trustme
from krea_data.krablet import Krablet
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.readers.plain import row_of
from krea_data.krablet.readers.process import Certificate, Reader
from krea_data.krablet.readers.reads import Limits
from krea_data.krablet.rpc import Refused, Remote, Tokens
from krea_data.rows import Result
from krea_data.testing import rows

from .reading import a_reader

pytestmark = pytest.mark.postgres

ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


@pytest.fixture(scope="module")
def dsns(new_dsns: Callable[[int], list[str]]) -> list[str]:
    """Two shards with 300 rows."""
    dsns = new_dsns(2)
    with Krablet(dsns) as krablet:
        krablet.add(rows(300))
        krablet.put("first", {row.id: Result(value={"n": n}) for n, row in enumerate(rows(200))})
    return dsns


@pytest.fixture(scope="module")
def reader(dsns: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    with a_reader(dsns, f"unix:{folder}/s", http="127.0.0.1:0", limits=Limits(many_s=0.2, answer_bytes=20_000)) as made:
        yield made[0]


@pytest.fixture(scope="module")
def web(reader: Reader) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{reader.http}", timeout=30) as web:
        yield web


def ask(web: httpx.Client, verb: str, **args: Any) -> Any:
    answer = web.post(f"/v1/{verb}", json=args)
    assert answer.status_code == 200, answer.text
    return answer.json()["value"]


def lines(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_verbs_answer_in_json(web: httpx.Client) -> None:
    row = ask(web, "get", id="synthetic/00003")
    assert (row["meta"]["label"], row["results"]) == ("thing 3", {"first": {"value": {"n": 3}, "dropped": None}})
    assert ask(web, "get", id="nobody") is None
    many = ask(web, "get_many", ids=["synthetic/00003", "nobody", "synthetic/00001"])
    assert ([one["id"] for one in many["rows"]], many["missing"]) == (["synthetic/00001", "synthetic/00003"], [])
    cells = ask(web, "get_many", ids=["synthetic/00003"], columns=["first.value.n"])
    assert cells == {"columns": ["id", "first.value.n"], "rows": [["synthetic/00003", "3"]], "missing": []}
    assert ask(web, "count", where={"field": "first.kept", "op": "eq", "value": True})["rows"] == 200
    assert (ask(web, "tasks"), ask(web, "stats")["first"]["kept"]) == (["first"], 200)
    assert [shard["up"] for shard in ask(web, "status")["shards"]] == [True, True]


def test_a_scan_is_lines_or_an_arrow_stream(web: httpx.Client) -> None:
    args = {"kept_by": ["first"], "limit": 150, "after": "synthetic/00010"}
    ids = [row.id for row in rows(200)[11:161]]
    found = lines(web.post("/v1/scan", json=args))
    assert [row["id"] for row in found[:-1]] == ids
    assert found[-1] == {"end": {"rows": 150, "missing": []}}
    some = lines(web.post("/v1/scan", json={**args, "columns": ["first.value.n", "added_at"], "limit": 1}))
    assert (some[0]["first.value.n"], some[0]["added_at"][:3]) == (11, "202")
    stream = web.post("/v1/scan", json=args, headers=ARROW)
    assert stream.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(io.BytesIO(stream.content)).read_all()
    assert table["id"].to_pylist() == ids
    assert json.loads(table["first.value"][0].as_py()) == {"n": 11}


def test_work_is_done_over_http(new_dsns: Callable[[int], list[str]], tmp_path: Path) -> None:
    with a_reader(new_dsns(1), f"unix:{tmp_path}/s", http="127.0.0.1:0") as (reader, _):
        with httpx.Client(base_url=f"http://{reader.http}", timeout=30) as web:
            assert ask(web, "add", rows=[["a", "blob", '{"n": 1}']]) == 1
            (claim,) = ask(web, "claim", task={"name": "fake"}, worker="w", limit=5, lease_s=60)
            assert (claim["id"], claim["row"]["meta"]) == ("a", {"n": 1})
            assert ask(web, "complete", task="fake", results=[["a", claim["token"] + 1, "{}", None]]) == 0
            assert ask(web, "complete", task="fake", results=[["a", claim["token"], '{"seen": 1}', "dark"]]) == 1
            assert ask(web, "get", id="a")["results"]["fake"] == {"value": {"seen": 1}, "dropped": "dark"}


WRONG: list[tuple[str, Any, int, str]] = [
    ("sql", {"query": "select 1"}, 404, "no verb 'sql'"),
    ("call", {}, 404, "no verb"),
    ("__init__", {}, 404, "no verb"),
    ("get", {}, 422, "missing a required argument: 'id'"),
    ("get", {"id": "a", "sql": "b"}, 422, "it takes id"),
    ("get", {"id": 7}, 422, "7 is no id"),
    ("get", {"id": "a\0"}, 422, "NUL"),
    ("get", [], 422, "no JSON object"),
    ("get", "{", 422, "no JSON"),
    ("get_many", {"ids": "abc"}, 422, "ids are not a list"),
    ("get_many", {"ids": ["a"] * 1001}, 422, "at most 1000"),
    ("get_many", {"ids": [row.id for row in rows(300)]}, 413, "over 20000 bytes"),
    ("scan", {"where": {"field": "id", "op": "like", "value": "%"}}, 422, "filter.op 'like'"),
    ("scan", {"where": "1=1; drop table images"}, 422, "filter is"),
    ("scan", {"columns": ["id; drop table images"]}, 422, "columns[0]"),
    ("scan", {"kept_by": "first"}, 422, "kept_by"),
    ("scan", {"kept_by": ["first; drop table images"]}, 200, ""),
    ("scan", {"limit": -1}, 422, "limit -1"),
    ("scan", {"after": 3}, 422, "after 3"),
    ("count", {"cap": 0}, 422, "cap 0"),
    ("claim", {"task": {"name": "a; drop table images"}, "worker": "w", "limit": 1, "lease_s": 1}, 422, "no name"),
    ("claim", {"task": "fake", "worker": "w", "limit": 1, "lease_s": 1}, 422, "is no task"),
    ("pending", {"task": "x'; drop table images; --"}, 200, ""),
    ("put", {"task": "first", "results": [["nobody", "{}", None]]}, 422, "nobody"),
    ("put", {"task": "first", "results": [["synthetic/00001", "[]", None]]}, 422, "no JSON object"),
    ("put", {"task": "first", "results": [["synthetic/00001", '{"a": NaN}', None]]}, 422, "synthetic/00001"),
    ("add", {"rows": [["", "b", "{}"]]}, 422, "row id"),
    ("add", {"rows": [["a", "b"]]}, 422, ""),
]


@pytest.mark.parametrize(("verb", "body", "status", "said"), WRONG)
def test_what_is_wrong_is_said(web: httpx.Client, verb: str, body: Any, status: int, said: str) -> None:
    answer = web.post(f"/v1/{verb}", content=body if isinstance(body, str) else json.dumps(body))
    assert answer.status_code == status, answer.text
    if status != 200:
        assert said in answer.json()["error"]["message"]
        assert set(answer.json()["error"]) == {"kind", "message"}
    assert ask(web, "get", id="synthetic/00001") is not None


def test_a_long_body_is_refused(web: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(70):
            yield b" " * (1 << 20)

    assert web.post("/v1/get", content=body()).status_code == 413


def test_a_read_that_takes_too_long_and_a_full_line_have_their_own_status(web: httpx.Client, dsns: list[str]) -> None:
    with psycopg.connect(dsns[0]) as one, psycopg.connect(dsns[1]) as two:
        for connection in (one, two):
            connection.execute("lock table images in access exclusive mode")
        answer = web.post("/v1/get_many", json={"ids": ["a", "b", "c"]})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "TooSlow")


def test_too_many_scans_are_told_to_come_back(dsns: list[str], tmp_path: Path) -> None:
    with a_reader(dsns, f"unix:{tmp_path}/s", http="127.0.0.1:0", limits=Limits(scans=0)) as (reader, _):
        answer = httpx.post(f"http://{reader.http}/v1/scan", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["kind"] == "Busy"


def test_a_shard_that_is_down(dsns: list[str], tmp_path: Path) -> None:
    broken = [dsns[0], make_conninfo(dsns[1], port=1)]
    with a_reader(broken, f"unix:{tmp_path}/s", http="127.0.0.1:0", patience_s=0.1) as (reader, _):
        with httpx.Client(base_url=f"http://{reader.http}", timeout=30) as web:
            ids = [row.id for row in rows(40)]
            answers = [web.post("/v1/get", json={"id": one}) for one in ids]
            assert {answer.status_code for answer in answers} == {200, 503}
            scan = web.post("/v1/scan", json={})
            assert (scan.status_code, scan.json()["error"]["kind"]) == (503, "ShardDown")
            assert "shard 1" in scan.json()["error"]["message"]
            end = lines(web.post("/v1/scan", json={"partial": True}))[-1]["end"]
            assert 0 < end["rows"] < 300
            assert "shard 1" in end["missing"][0]
            ready = web.get("/ready")
            assert (ready.status_code, len(ready.json()["down"])) == (200, 1)


def test_health_and_metrics(web: httpx.Client) -> None:
    ask(web, "get", id="synthetic/00001")
    assert web.get("/health").json() == {"ok": True}
    assert web.get("/ready").json() == {"ready": True, "down": []}
    text = web.get("/metrics").text
    assert 'krablet_reader_calls_total{outcome="ok",verb="get"}' in text
    assert 'krablet_reader_shard_up{shard="1"} 1.0' in text


def test_rpc_calls_are_counted_too(web: httpx.Client, reader: Reader) -> None:
    with Remote(reader.address) as remote:
        plain = remote.call("get", id="synthetic/00005")
        assert row_of(plain).meta["label"] == "thing 5"
        with pytest.raises(LookupError, match="no verb 'sql'"):
            remote.call("sql", query="select 1")
        with pytest.raises(ValueError, match="it takes id"):
            remote.call("get", key="a")
    assert 'krablet_reader_calls_total{outcome="ValueError",verb="get"} ' in web.get("/metrics").text


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(
    dsns: list[str], tmp_path: Path, authority: trustme.CA
) -> Iterator[tuple[Reader, ssl.SSLContext, dict[str, str]]]:
    """A reader with TLS and tokens, how to trust it, and the secrets by scope."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    key.write_bytes(certificate.private_key_pem.bytes())
    chain.write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    tokens = Tokens.load(tmp_path / "tokens.json")
    secrets = {scope: tokens.add(scope, [scope]) for scope in ("read", "work", "admin")}
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    options = {"http": "127.0.0.1:0", "certificate": Certificate(chain=chain, key=key)}
    with a_reader(dsns, "127.0.0.1:0", tokens, **options) as (reader, _):
        yield reader, trust, secrets


def test_tokens_open_what_their_scopes_say(secured: tuple[Reader, ssl.SSLContext, dict[str, str]]) -> None:
    reader, trust, secrets = secured
    with httpx.Client(base_url=f"https://{reader.http}", verify=trust) as web:

        def status(verb: str, args: dict[str, Any], token: str | None, kind: str = "Bearer") -> int:
            headers = {} if token is None else {b"Authorization": f"{kind} {token}".encode()}
            answer = web.post(f"/v1/{verb}", json=args, headers=headers)
            assert (answer.status_code == 401) == ("www-authenticate" in answer.headers)
            return answer.status_code

        get, pending = ("get", {"id": "a"}), ("pending", {"task": "first"})
        for wrong in (
            None,
            "x y",
            "wrong",
            secrets["read"][:-1],
            secrets["read"] + "x",
            "\u00e4",
        ):
            assert status(*get, wrong) == status("no_verb", {}, wrong) == 401
        assert status(*get, secrets["read"], "Basic") == 401
        assert (status(*get, secrets["read"]), status(*get, secrets["admin"])) == (200, 200)
        assert (status(*pending, secrets["read"]), status(*pending, secrets["work"])) == (403, 200)
        assert status(*get, secrets["work"]) == 403
        assert status("set", {"max_attempts": 3, "retry_s": 1}, secrets["work"]) == 403
        assert [web.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200] * 3
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{reader.http}/health")
    with Remote(reader.address, token=secrets["read"], tls=trust, patience_s=1.0) as remote:
        assert remote.call("get", id="synthetic/00001")[0] == "synthetic/00001"
        with pytest.raises(Refused, match="scope 'work'"):
            remote.call("pending", task="first")
    with pytest.raises(Refused, match="token"):
        Remote(reader.address, token="wrong", tls=trust, patience_s=1.0)


def test_an_open_address_needs_tokens(dsns: list[str], tmp_path: Path) -> None:
    for address, http in (("0.0.0.0:0", None), (f"unix:{tmp_path}/s", "0.0.0.0:0")):
        with pytest.raises(ValueError, match="give tokens"), a_reader(dsns, address, http=http):
            pass
    missing = Certificate(chain=tmp_path / "a", key=tmp_path / "b")
    with pytest.raises(ValueError, match="no certificate"), a_reader(dsns, "127.0.0.1:0", certificate=missing):
        pass
