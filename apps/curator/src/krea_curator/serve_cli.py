"""`krea-curate krablet serve` and `token`: let those in who have no DSN."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from krea_data.krablet.rpc import Tokens
from krea_data.krablet.rpc.tokens import SCOPES

from krea_curator import compose
from krea_curator.compose import Home
from krea_curator.options import HOME, Dsns, HomeFlag
from krea_curator.terminal import note, plain_errors

__all__ = ["READER", "krablet_serve", "token_app", "watch"]

READER = "127.0.0.1:7610"

token_app = typer.Typer(
    help="Who may come in, and what for. A token's secret is shown once, when it is made.", no_args_is_help=True
)
TokensFlag = Annotated[
    Path | None, typer.Option("--tokens", help="The file of the tokens; tokens.json in the home unless given.")
]


def krablet_serve(
    listen: Annotated[str | None, typer.Option(help="host:port or unix:/path for readers (RPC).")] = None,
    funnel: Annotated[str | None, typer.Option(help="host:port or unix:/path for writers of records (RPC).")] = None,
    http: Annotated[
        str | None,
        typer.Option(help="host:port for /health, /ready, /metrics, and a reader's verbs."),
    ] = None,
    tokens: TokensFlag = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key in PEM.")] = None,
    spool: Annotated[
        Path | None, typer.Option(help="A folder of this funnel's own, for writers that must not wait for databases.")
    ] = None,
    drain: Annotated[float, typer.Option(help="Seconds that calls in flight have left at the end.")] = 20.0,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Serve readers, a funnel or both, until SIGTERM or Ctrl-C; a reader at 127.0.0.1:7610 unless told otherwise.

    Beyond this machine it takes tokens, and should have TLS.
    """
    with plain_errors():
        from krea_data.krablet.readers.process import (
            Certificate,  # these bring a web server, which other commands do not need
        )

        from krea_curator.serving import Serving, serve

        if (tls_cert is None) != (tls_key is None):
            raise ValueError("give both --tls-cert and --tls-key, or neither")
        if spool is not None and funnel is None:
            raise ValueError("--spool is for a funnel; give --funnel too")
        pair = None if tls_cert is None or tls_key is None else Certificate(chain=tls_cert, key=tls_key)
        what = Serving(
            reader=listen if listen or funnel else READER,
            funnel=funnel,
            http=http,
            tokens=_tokens(home, tokens),
            certificate=pair,
            spool=spool,
            drain_s=drain,
        )
        with compose.dsns(Home(folder=home), dsn or ()) as addresses:
            serve(addresses, what, _say)


@token_app.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(sorted(SCOPES))}; may be repeated.")],
    home: HomeFlag = HOME,
    tokens: TokensFlag = None,
) -> None:
    """Make a token and print its secret. Servers that run know it at once."""
    with plain_errors():
        typer.echo(Tokens.load(_token_file(home, tokens)).add(name, scope))


@token_app.command("list")
def token_list(home: HomeFlag = HOME, tokens: TokensFlag = None) -> None:
    """Who has a token."""
    with plain_errors():
        for name in Tokens.load(_token_file(home, tokens)).names:
            typer.echo(name)


@token_app.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="Whose token.")], home: HomeFlag = HOME, tokens: TokensFlag = None
) -> None:
    """Let nobody in with this token any more; connections that are open stay until they end."""
    with plain_errors():
        try:
            Tokens.load(_token_file(home, tokens)).remove(name)
        except LookupError as error:
            raise ValueError(str(error.args[0])) from error
        typer.echo(f"{name} is out")


def watch(dsns: Sequence[str], http: str) -> None:
    """Serve health and metrics until SIGTERM or Ctrl-C."""
    from krea_curator.serving import Serving, serve  # as above

    serve(dsns, Serving(http=http), _say)


def _say(where: dict[str, str]) -> None:
    for what, address in where.items():
        typer.echo(f"{what} {address}")
    note("up; Ctrl-C ends")


def _token_file(home: Path, given: Path | None) -> Path:
    return home / "tokens.json" if given is None else given


def _tokens(home: Path, given: Path | None) -> Tokens | None:
    """The tokens of a file that was named or is there; None lets everybody in who gets to the address."""
    path = _token_file(home, given)
    if given is not None and not path.exists():
        raise ValueError(f"{path} is not there; krea-curate krablet token add makes it")
    return Tokens.load(path) if path.exists() else None
