"""Operators' commands, on embedded databases: what they say, what they change, and with which code they end."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from krea_curator import compose
from krea_curator.cli import app
from krea_curator.compose import Home
from krea_curator.options import read_dsns
from krea_curator.serving import funnel_text
from krea_data.krablet import Krablet
from krea_data.krablet.rpc import Remote, Tokens
from krea_data.rows import Row
from typer.testing import CliRunner

pytestmark = pytest.mark.postgres


def invoke(code: int, *words: str | Path) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def krablet(code: int, *words: str | Path) -> tuple[str, str]:
    return invoke(code, "krablet", *words)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with rows in queues, which runs while the tests of this file do."""
    where = Home(folder=tmp_path_factory.mktemp("full"))
    with compose.dsns(where):
        with compose.open_table(where) as table:
            table.add(Row(id=f"{n}", blob="0" * 64, meta={"n": n}) for n in range(100))
        yield where


def sql(home: Home, shard: int, statement: str) -> None:
    with compose.dsns(home) as addresses, Krablet(addresses) as table:
        table.shards.attempt(shard, lambda c: c.execute(statement.encode()))


def test_help_gives_examples() -> None:
    said, _ = krablet(0, "--help")
    assert "krea-curate krablet check --repair" in said


def test_status_says_what_each_shard_holds(full: Home, tmp_path: Path) -> None:
    said, _ = krablet(0, "status", "--home", full.folder)
    assert said.startswith("running\n")
    cells = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "│" in line]
    assert sum(int(row[5]) for row in cells if row[3:4] == ["up"]) == 100
    assert ["licence", "100", "100"] in [row[1:4] for row in cells]
    _, error = krablet(2, "status", "--home", tmp_path)
    assert "no krablet in" in error


def test_a_file_of_dsns_stands_for_them(full: Home, tmp_path: Path) -> None:
    with compose.dsns(full) as addresses:
        (tmp_path / "dsns").write_text("# of the test\n" + "\n".join(addresses) + "\n")
    assert "running" not in krablet(0, "status", "--dsn", f"@{tmp_path}/dsns")[0]
    assert read_dsns([f"@{tmp_path}/dsns", "host=x"]) == [*addresses, "host=x"]
    _, error = krablet(2, "status", "--dsn", f"@{tmp_path}/none")
    assert "cannot be read" in error


def test_check_ends_with_one_where_a_rule_is_broken_and_repairs(full: Home) -> None:
    at = ("--home", full.folder)
    krablet(0, "check", *at)
    sql(full, 0, "delete from queue_licence where id = (select min(id) from queue_licence)")
    said, _ = krablet(1, "check", "--quick", *at)
    assert "the queue of licence lacks 1 rows" in said
    said, _ = krablet(0, "check", "--repair", *at)
    assert "repaired" in said
    sql(full, 1, "insert into result_licence values (3, 'none', '{}')")
    said, _ = krablet(1, "check", "--repair", *at)
    assert "of ids that are not there, such as 'none'" in said
    sql(full, 1, "delete from result_licence")
    krablet(0, "check", *at)


def test_a_dump_is_restored_into_another_home_with_other_shards(full: Home, tmp_path: Path) -> None:
    folder, other = tmp_path / "dump", Home(folder=tmp_path / "other")
    said, _ = krablet(0, "dump", folder, "--home", full.folder)
    assert re.fullmatch(r"2\d\d rows of 2 shards in .*\n|1\d\d rows of 2 shards in .*\n|200 rows .*\n", said)
    _, error = krablet(2, "dump", folder, "--home", full.folder)
    assert "is there already" in error
    with compose.dsns(other, shards=1):
        said, _ = krablet(0, "restore", folder, "--home", other.folder)
        assert said.endswith(f"rows on 1 shards, the same as in {folder}\n")
        with compose.open_table(full) as table, compose.open_table(other) as copy:
            assert list(copy.scan()) == list(table.scan())
            assert copy.stats() == table.stats()
        krablet(0, "check", "--home", other.folder)
    next((folder / "images").iterdir()).unlink()
    _, error = krablet(2, "restore", folder, "--home", tmp_path / "third")
    assert error.startswith("error: the dump is damaged")
    assert error.count("\n") == 1


def test_slots_move(full: Home) -> None:
    at = ("--home", full.folder)
    assert krablet(0, "move", "3", "--to", "1", *at)[0].startswith("1 slots moved")
    assert krablet(0, "move", *at)[0].startswith("1 slots moved")
    assert krablet(0, "move", "--cancel", *at)[0] == "0 slots stay where they are\n"
    assert "give slots and --to" in krablet(2, "move", "3", *at)[1]
    assert "there is no shard 7" in krablet(2, "move", "3", "--to", "7", *at)[1]
    assert "name the DSN of the new database" in krablet(2, "add-shard", "--dsn", "host=x", *at)[1]
    krablet(0, "check", *at)


@pytest.mark.slow
def test_an_embedded_krablet_gets_one_more_shard(tmp_path: Path) -> None:
    where = Home(folder=tmp_path)
    with compose.dsns(where, shards=1):
        with compose.open_table(where) as table:
            table.add(Row(id=f"{n}", blob="b") for n in range(100))
        said, _ = krablet(0, "add-shard", "--home", tmp_path)
        assert re.search(r"^shard 1 is .*\n32 slots moved, \d+ rows$", said.strip())
        krablet(0, "check", "--home", tmp_path)
        with compose.open_table(where) as table:
            assert len(table.dsns) == 2
            assert len(list(table.scan())) == 100


def test_pause_and_resume(full: Home) -> None:
    at = ("--home", full.folder)
    assert krablet(0, "pause", "licence", "--shard", "1", *at)[0] == "licence is paused on shards 1\n"
    said, _ = krablet(0, "metrics", *at)
    assert 'krablet_paused{task="licence",shard="1"} 1\n' in said
    assert 'krablet_paused{task="licence",shard="0"} 0\n' in said
    assert krablet(0, "resume", "licence", *at)[0] == "licence is paused nowhere\n"
    _, error = krablet(2, "pause", "nothing", *at)
    assert "there is no queue of a task 'nothing'" in error


def test_tokens_come_and_go(tmp_path: Path) -> None:
    at = ("--tokens", tmp_path / "tokens.json")
    secret = krablet(0, "token", "add", "ann", "--scope", "read", "--scope", "write", *at)[0].strip()
    caller = Tokens.load(tmp_path / "tokens.json").check(secret)
    assert caller is not None
    assert (caller.name, caller.scopes) == ("ann", {"read", "write"})
    assert secret not in (tmp_path / "tokens.json").read_text()
    assert krablet(0, "token", "list", *at)[0] == "ann\n"
    assert "already" in krablet(2, "token", "add", "ann", "--scope", "read", *at)[1]
    assert "are not some of" in krablet(2, "token", "add", "bob", "--scope", "everything", *at)[1]
    krablet(0, "token", "revoke", "ann", *at)
    assert Tokens.load(tmp_path / "tokens.json").check(secret) is None
    assert "there is no token 'ann'" in krablet(2, "token", "revoke", "ann", *at)[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tls-cert", "chain.pem"), "give both --tls-cert and --tls-key"),
        (("--spool", "spool"), "--spool is for a funnel"),
        (("--tokens", "none.json"), "token add makes it"),
        (("--listen", "0.0.0.0:0"), "give tokens"),
        (("--listen", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_line(full: Home, words: tuple[str, ...], says: str) -> None:
    _, error = krablet(2, "serve", *words, "--home", full.folder)
    assert says in error
    assert error.count("\n") == 1


@pytest.fixture
def serving(full: Home) -> Iterator[Callable[..., tuple["subprocess.Popen[str]", dict[str, str]]]]:
    """A function that runs a command which serves, and says where; it is killed at the end if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(what: int, *words: str | Path) -> tuple["subprocess.Popen[str]", dict[str, str]]:
        command = [sys.executable, "-m", "krea_curator", "krablet", *map(str, words), "--home", str(full.folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        where: dict[str, str] = {}
        while len(where) < what and (line := process.stdout.readline()):
            if not line.startswith("host="):
                name, _, address = line.strip().partition(" ")
                where[name] = address
        return process, where

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def got(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        return answer.read().decode()


def test_a_reader_and_a_funnel_in_one_process(full: Home, serving: Callable, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    secret = krablet(0, "token", "add", "ann", "--scope", "read", "--scope", "write", "--tokens", tokens)[0].strip()
    process, where = serving(
        3, "serve", "--listen", "127.0.0.1:0", "--funnel", "127.0.0.1:0", "--http", "127.0.0.1:0",
        "--tokens", tokens, "--spool", tmp_path / "spool",
    )  # fmt: skip
    assert where.keys() == {"reader", "funnel", "http"}
    assert json.loads(got(f"{where['http']}/ready"))["ready"] is True
    assert "krablet_reader_calls" in got(f"{where['http']}/metrics")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        got_verb(where["http"], "get", {"id": "7"}, "wrong")
    assert got_verb(where["http"], "get", {"id": "7"}, secret)["value"]["meta"] == {"n": 7}
    with Remote(where["reader"], token=secret) as reader:
        assert reader.call("get", id="8")[0] == "8"
    with Remote(where["funnel"], token=secret) as funnel:
        funnel.call("declare", name="counts", columns=[["hits", "int", "add"]])
        assert funnel.call("describe", target="record:counts") == [["hits", "int", "add"]]
    assert ended(process) == 0


def test_tls_is_for_calls_and_for_http(serving: Callable, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    files = ("--tls-cert", tmp_path / "chain.pem", "--tls-key", tmp_path / "key.pem")
    process, where = serving(2, "serve", "--funnel", "127.0.0.1:0", "--http", "127.0.0.1:0", *files)
    context = ssl.create_default_context()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://{where['http']}/health", timeout=10, context=context)
    authority.configure_trust(context)
    with urllib.request.urlopen(f"https://{where['http']}/health", timeout=10, context=context) as answer:
        assert json.load(answer) == {"ok": True}
    with Remote(where["funnel"], tls=context) as funnel:
        assert funnel.call("status")["requests"] == 0
    assert ended(process) == 0


def got_verb(address: str, verb: str, args: dict[str, object], secret: str) -> dict:
    request = urllib.request.Request(
        f"http://{address}/v1/{verb}", json.dumps(args).encode(), {"Authorization": f"Bearer {secret}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("words", "what", "number"),
    [
        (("serve", "--funnel", "127.0.0.1:0"), 2, "krablet_funnel_requests 0"),
        (("up",), 1, 'krablet_shard_up{shard="1"} 1'),
        (("metrics",), 1, 'krablet_backlog_rows{task="licence",shard="0"}'),
    ],
)
def test_health_and_metrics_over_http(serving: Callable, words: tuple[str, ...], what: int, number: str) -> None:
    process, where = serving(what, *words, "--http", "127.0.0.1:0")
    assert json.loads(got(f"{where['http']}/health")) == {"ok": True}
    assert json.loads(got(f"{where['http']}/ready")) == {"ready": True}
    assert number in got(f"{where['http']}/metrics")
    assert ended(process) == 0


def test_a_funnels_numbers_are_what_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    lane = {"rows": 3, "bytes": 4, "age_s": 0.5, "rows_per_s": 1.0, "batches": 7, "stored": 9}
    text = funnel_text({"lanes": {"record:a/0": lane}, "spool_bytes": 5, "requests": 2})
    found = {
        (sample.name, sample.labels.get("lane")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["krablet_funnel_age_seconds", "record:a/0"] == 0.5
    assert found["krablet_funnel_stored_total", "record:a/0"] == 9
    assert found["krablet_funnel_spool_bytes", None] == 5


def test_other_commands_do_not_load_a_web_server() -> None:
    code = "import sys, krea_curator.cli; print([m for m in ('uvicorn', 'starlette', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
