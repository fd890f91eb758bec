import io
import sys
from types import ModuleType
from typing import Any

import pytest
from krea_data.krablet.pluck.display import Bar, Box, Lines, Nothing, board, html_text, plain_text
from krea_data.krablet.pluck.maps import Progress

HALF = Progress(rows=49, failed=1, expected=100, ranges=4, ranges_done=2, workers=2)
DONE = Progress(rows=99, failed=1, expected=100, ranges=4, ranges_done=4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_words() -> None:
    assert plain_text("m", HALF) == "map m: 49 of about 100 rows (50 %), 1 failed, 2 workers"
    assert plain_text("m", DONE).endswith("(100 %), 1 failed, done")
    assert plain_text("m", Progress(ranges=1, expected=5), KeyError("x")).endswith("waiting for workers, 'x'")
    assert plain_text("m", Progress(ranges=1, state="cancelled")).endswith("cancelled")
    assert "&lt;b&gt;" in html_text("<b>", HALF)
    assert "width: 50.0%" in html_text("m", HALF)


def test_a_share_never_says_all_before_all_is_done() -> None:
    assert Progress(rows=200, expected=100, ranges=2, ranges_done=1).share < 1
    assert DONE.share == 1


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    lines = board(stream)
    assert isinstance(lines, Lines)
    lines.show("m", HALF)
    assert stream.getvalue() == ""
    often = Lines(stream, every_s=0.0)
    often.show("m", HALF)
    often.close("m", DONE, None)
    assert stream.getvalue() == f"{plain_text('m', HALF)}\n{plain_text('m', DONE)}\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    bar = board(stream)
    assert isinstance(bar, Bar)
    bar.show("[m]", HALF)
    bar.close("[m]", DONE, None)
    assert "map [m]" in stream.getvalue()
    assert "100/100" in stream.getvalue()


def test_a_notebook_gets_a_box_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, bool]] = []

    class Drawn:
        def update(self, view: Any) -> None:
            drawn.append((view, True))

    def display(view: Any, *, display_id: bool) -> Drawn:
        assert display_id
        drawn.append((view, False))
        return Drawn()

    class Shell:
        kernel = None

    ipython, inner = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = Shell  # pyright: ignore[reportAttributeAccessIssue]
    inner.display = display  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    box = board(Terminal())
    assert isinstance(box, Box)
    box.show("m", HALF)
    box.close("m", DONE, RuntimeError("no <more>"))
    assert [again for _, again in drawn] == [False, True, True]
    bundles = [view._repr_mimebundle_(include=None, exclude=None) for view, _ in drawn]
    assert bundles[1] == {"text/plain": plain_text("m", HALF), "text/html": html_text("m", HALF)}
    assert "no &lt;more&gt;" in bundles[2]["text/html"]


def test_plain_ipython_in_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = object  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    bar = board(Terminal())
    assert isinstance(bar, Bar)
    bar.close("m", DONE, None)
    Nothing().show("m", HALF)
