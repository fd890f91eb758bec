"""Flags are few and listed here; errors are one line; every command says what it did."""

from pathlib import Path

import pytest
import typer
from krea_curator import cli, compose, recipe
from krea_curator.cli import app
from krea_curator.compose import Home
from krea_curator.recipe import Recipe
from krea_data.demo import FetchError
from typer.testing import CliRunner

FLAGS = {
    "fetch-demo": {"--set", "--side-px", "--cache"},
    "ingest": {"--name", "--licence", "--author", "--workers", "--home", "--dsn"},
    "run": {
        *("--task", "--workers", "--until-idle", "--batch", "--lease", "--isolate", "--memory", "--timeout"),
        *("--home", "--dsn", "--leash"),
    },
    "status": {"--home", "--dsn", "--live"},
    "funnel": {"--home", "--dsn"},
    "dedup": {"--home", "--dsn"},
    "export": {"--seed", "--per-shard", "--stage", "--home", "--dsn"},
    "limits": {"--field", "--home", "--dsn"},
    "review": {"--port", "--home", "--dsn"},
    "krablet up": {"--home", "--shards", "--http"},
    "krablet status": {"--home", "--dsn"},
    "krablet psql": {"--home", "--dsn", "--shard"},
    "krablet add-shard": {"--home", "--dsn"},
    "krablet move": {"--to", "--cancel", "--home", "--dsn"},
    "krablet check": {"--quick", "--repair", "--home", "--dsn"},
    "krablet dump": {"--home", "--dsn"},
    "krablet restore": {"--shards", "--home", "--dsn"},
    "krablet pause": {"--shard", "--home", "--dsn"},
    "krablet resume": {"--shard", "--home", "--dsn"},
    "krablet metrics": {"--http", "--home", "--dsn"},
    "krablet serve": {
        *("--listen", "--funnel", "--http", "--tokens", "--tls-cert", "--tls-key", "--spool", "--drain"),
        *("--home", "--dsn"),
    },
    "krablet token add": {"--scope", "--home", "--tokens"},
    "krablet token list": {"--home", "--tokens"},
    "krablet token revoke": {"--home", "--tokens"},
}


def flags(command: object, name: str = "") -> dict[str, set[str]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return {name: {flag for one in getattr(command, "params", ()) for flag in one.opts if flag.startswith("--")}}
    return {key: value for sub, one in inner.items() for key, value in flags(one, f"{name} {sub}".strip()).items()}


def test_a_new_flag_is_a_decision() -> None:
    assert flags(typer.main.get_command(app)) == FLAGS


def invoke(code: int, *words: str | Path) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_help_gives_examples() -> None:
    said, _ = invoke(0, "--help")
    assert "krea-curate ingest CORPUS" in said
    assert "--leash" not in invoke(0, "run", "--help")[0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("ingest", "nowhere"), 2, "nowhere is not there"),
        (("run", "--task", "taste"), 2, "no task 'taste'"),
        (("export", "out"), 2, "no row has been kept"),
        (("krablet", "psql", "--shard", "7"), 2, "no shard 7; there are 0 to 1"),
        (("krablet", "up", "--shards", "3"), 2, "holds 2 shards, not 3"),
    ],
)
@pytest.mark.postgres
def test_wrong_input_is_one_line(empty_home: Home, words: tuple[str, ...], code: int, says: str) -> None:
    _, error = invoke(code, *words, "--home", empty_home.folder)
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_database_that_does_not_answer_is_an_error_of_its_own(tmp_path: Path) -> None:
    _, error = invoke(1, "funnel", "--home", tmp_path, "--dsn", f"host={tmp_path} dbname=none")
    assert "does not answer" in error
    assert error.count("\n") == 1


def test_debug_shows_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KREA_DEBUG", "1")
    result = CliRunner().invoke(app, ["krablet", "status", "--home", str(tmp_path)])
    assert isinstance(result.exception, ValueError)


def test_fetch_demo_says_where_it_lies_and_under_which_licences(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(cache: Path | None, sets: tuple[str, ...], *, side_px: int, on_progress: object) -> Path:
        asked.append((cache, sets, side_px))
        assert callable(on_progress)
        on_progress("draw", 1, 2)
        return corpus

    monkeypatch.setattr(cli, "demo_corpus", fetched)
    said, note = invoke(0, "fetch-demo", "--set", "noto", "--side-px", "32")
    assert asked == [(None, ("noto",), 32)]
    assert said.strip().splitlines()[-1] == str(corpus)
    assert "GPL-3.0-only" in said
    assert f'ingest "{corpus}"' in note


def test_a_registry_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Path:
        raise FetchError("npm could not reach the registry; connect and run this again")

    monkeypatch.setattr(cli, "demo_corpus", refused)
    _, error = invoke(1, "fetch-demo")
    assert "npm could not reach the registry; connect and run this again" in error


@pytest.mark.postgres
def test_the_commands_around_a_run(home: Home, corpus: Path) -> None:
    at = ("--home", home.folder)
    invoke(0, "ingest", corpus, *at)
    assert "running" in invoke(0, "krablet", "status", *at)[0]
    for task in ("licence", "decode", "flat", "complexity", "hash"):
        invoke(0, "run", "--until-idle", "--workers", "1", "--task", task, *at)
    said, _ = invoke(0, "status", *at)
    assert [line.split()[1:6:2] for line in said.splitlines() if "decode" in line]
    with compose.open_table(home) as table:
        assert table.stats()["hash"].done == 31
        assert table.pending("caption") == 0
    said, _ = invoke(0, "dedup", *at)
    assert "2 duplicate, 1 near duplicate" in said
    assert "twin/near" in said
    with compose.open_table(home) as table:
        assert table.pending("caption") == 28
    recipe.write(Recipe(stages={"sft": {"flat.entropy": {"least": 1.0}}}), home.folder / "recipe.json")
    page = home.folder / "limits.html"
    assert invoke(0, "limits", page, "--field", "flat.entropy", *at)[0] == f"1 number in {page}\n"
    assert "sft: at least 1 leaves out" in page.read_text()
    _, error = invoke(2, "limits", page, "--field", "flat.taste", *at)
    assert "no row has a number 'flat.taste'; there are complexity.lost, " in error
    invoke(0, "run", "--until-idle", "--workers", "1", "--task", "caption", *at)
    everything = int(invoke(0, "export", home.folder / "all", *at)[0].split()[0])
    with compose.open_table(home) as table:
        wanted = sum(1 for row in table.scan(kept_by=compose.ORDER) if row.results["flat"].value["entropy"] >= 1.0)
    assert int(invoke(0, "export", home.folder / "sft", "--stage", "sft", *at)[0].split()[0]) == wanted < everything
    assert "no stage 'taste'; there are sft" in invoke(2, "export", home.folder / "x", "--stage", "taste", *at)[1]


@pytest.mark.postgres
def test_psql_gets_what_follows(empty_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(
        app, ["krablet", "psql", "--home", str(empty_home.folder), "--", "-Atc", "select 6 * 7"]
    )
    assert result.exit_code == 0
    assert capfd.readouterr().out.strip() == "42"
