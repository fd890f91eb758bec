"""The page in a real browser: what a person does with mouse and keys, and what they then see, hold and hear.

KREA_CHROMIUM names the browser if it is not on the path; KREA_SHOTS is a folder for screenshots to look at.
"""

import json
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from krea_model import bundle
from krea_sampler import picture
from krea_sampler.cli import app
from krea_sampler.compose import Setup, artist
from krea_sampler.drawing import Drawing
from krea_sampler.explore import Mixture
from krea_sampler.serve import address, listening
from krea_sampler.serve.engine import Engine, OnStep, Settings
from krea_sampler.serve.server import Server
from PIL import Image
from typer.testing import CliRunner

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
expect = playwright.expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = os.environ.get("KREA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    expect.set_options(timeout=20_000)  # of a machine that does other things as well
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{path} does not start here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@dataclass(kw_only=True)
class Gate:
    """Lets drawing go on, or holds it after a step, so that a test can look at what is half done."""

    open: threading.Event = field(default_factory=threading.Event)
    held_at: int = 2

    def engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the gate into every engine."""
        draw = Engine.draw

        def gated(engine: Engine, mixture: Mixture, settings: Settings, on_step: OnStep, origin: Any = None) -> Drawing:
            def step_through(step: int, image: Callable[[], Image.Image | None]) -> None:
                on_step(step, image)
                if step == self.held_at:
                    self.open.wait(60)

            return draw(engine, mixture, settings, step_through, origin)

        monkeypatch.setattr(Engine, "draw", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate that is open until a test closes it."""
    found = Gate()
    found.open.set()
    found.engine(monkeypatch)
    yield found
    found.open.set()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def place(model: Path, out: Path, gate: Gate) -> Iterator[str]:
    """The address of a server with a tiny model."""
    setup = Setup(model=model)
    with listening(artist(setup), setup, out, port=0) as server, answering(server):
        yield address(server)
        gate.open.set()


@pytest.fixture
def visit(chromium: Any, place: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing may have been complained about in the browser's console."""
    complaints: list[str] = []
    contexts = []

    def open_page(**settings: Any) -> Any:
        context = chromium.new_context(**({"viewport": LAPTOP, "base_url": place} | settings))
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto("/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # a refusal that a test asks for is also logged by the browser, as a failed request
    assert [text for text in complaints if "status of 400" not in text] == []


@pytest.fixture
def page(visit: Callable[..., Any]) -> Any:
    return visit()


@contextmanager
def answering(server: Server) -> Iterator[None]:
    """Answers requests inside the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("KREA_SHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


def draw(page: Any, prompt: str = "a red fox", count: int = 12) -> None:
    """Type a prompt, press Enter, wait for its board."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    ready(page, prompt, count)


def ready(page: Any, title: str, count: int = 12) -> None:
    expect(page.locator("#title")).to_have_text(title)
    expect(page.locator(".tile.done")).to_have_count(count)


def tile(page: Any, number: int) -> Any:
    return page.locator(".tile").nth(number)


def png(page: Any, number: int) -> bytes:
    """The bytes behind a tile, once the browser shows them."""
    image = tile(page, number).locator("img")
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("(image) => image.naturalWidth") == 16
    return page.request.get(image.get_attribute("src")).body()


def parameters(data: bytes) -> dict[str, Any]:
    return json.loads(Image.open(BytesIO(data), formats=["PNG"]).info["krea"])


def containing(part: str) -> re.Pattern[str]:
    """What a longer text is matched with."""
    return re.compile(re.escape(part))


def test_a_prompt_becomes_a_board_of_twelve(page: Any) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#empty")).to_be_visible()
    shot(page, "empty")
    draw(page)
    assert len({png(page, number) for number in range(12)}) == 12
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#picked .hint")).to_be_visible()
    assert "a red fox" in page.title()


def test_more_like_the_picked_one(page: Any) -> None:
    draw(page)
    tile(page, 5).click()
    expect(tile(page, 5)).to_have_attribute("aria-selected", "true")
    picked = png(page, 5)
    page.locator("#distance").fill("0.2")
    page.click("#more")
    expect(tile(page, 0).locator(".caption")).to_have_text("picked")
    ready(page, "a red fox")
    assert png(page, 0) == picked
    found = parameters(png(page, 7))
    assert found["origin"]["distance"] == 0.2
    assert found["mixture"]["seeds"][0] == parameters(picked)["seeds"][0]
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#from")).to_contain_text("more like")
    shot(page, "more")
    page.click("#from a")
    expect(tile(page, 5)).to_have_attribute("aria-selected", "true")


def test_a_double_click_is_more_like_it(page: Any) -> None:
    draw(page)
    tile(page, 2).dblclick()
    expect(tile(page, 0).locator(".caption")).to_have_text("picked")
    expect(page.locator("#history li")).to_have_count(2)


def test_between_two_boards(page: Any) -> None:
    draw(page, "a red fox")
    tile(page, 3).click()
    first = png(page, 3)
    page.click("#between")
    expect(page.locator("#mode")).to_be_visible()
    shot(page, "between-mode")
    draw(page, "a rocket")  # the other end may yet have to be drawn
    second = png(page, 8)
    tile(page, 8).click()
    ready(page, "a red fox to a rocket")
    expect(page.locator("#mode")).to_be_hidden()
    assert (png(page, 0), png(page, 11)) == (first, second)
    assert parameters(png(page, 4))["mixture"]["prompts"] == ["a red fox", "a rocket"]
    assert page.locator("#from a").count() == 2
    shot(page, "between")


def test_shift_click_is_between_and_escape_leaves_it(page: Any) -> None:
    draw(page)
    tile(page, 1).click()
    page.keyboard.press("b")
    expect(tile(page, 1)).to_have_class("tile done first")
    page.keyboard.press("Escape")
    expect(tile(page, 1)).to_have_class("tile done")
    tile(page, 4).click(modifiers=["Shift"])
    expect(tile(page, 0).locator(".caption")).to_have_text("0 %")
    expect(page.locator("#history li")).to_have_count(2)


def test_toward_other_words(page: Any) -> None:
    draw(page)
    tile(page, 1).click()
    page.fill("#words", "a rocket")
    page.press("#words", "Enter")
    ready(page, "a red fox to a rocket")
    tile(page, 6).click()
    expect(page.locator("#recipe")).to_contain_text("45 % a red fox")
    expect(page.locator("#recipe")).to_contain_text("55 % a rocket")


def test_keys_alone_do_everything(page: Any) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a red fox")
    page.keyboard.press("Enter")
    ready(page, "a red fox")
    page.keyboard.press("Escape")
    for key, number in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowDown", 5), ("ArrowUp", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(tile(page, number)).to_have_attribute("aria-selected", "true")
        expect(tile(page, number)).to_be_focused()
    page.keyboard.press("ArrowLeft")  # there is nothing farther left
    expect(tile(page, 0)).to_be_focused()
    page.keyboard.press("v")
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(2)
    expect(tile(page, 0).locator(".caption")).to_have_text("picked")
    page.keyboard.press("[")
    expect(tile(page, 0).locator(".caption")).to_contain_text("seed")
    page.keyboard.press("]")
    expect(tile(page, 0).locator(".caption")).to_have_text("picked")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()


def test_undo_takes_back_a_board_and_brings_one_back(page: Any) -> None:
    draw(page, "a red fox")
    draw(page, "a rocket")
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator("#title")).to_have_text("a red fox")
    expect(page.locator("#history li")).to_have_count(1)
    draw(page, "a rocket")
    page.keyboard.press("Escape")
    page.keyboard.press("[")
    ready(page, "a red fox")
    draw(page, "snow")
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator("#title")).to_have_text("a red fox")  # where it was asked for, not the newest
    page.keyboard.press("]")
    ready(page, "a rocket")
    page.click("#remove")
    expect(page.locator("#title")).to_have_text("a red fox")
    page.click("#remove")
    expect(page.locator("#title")).to_have_text("Nothing drawn yet")
    expect(page.locator("#trouble")).to_be_hidden()
    page.click("#undo")
    ready(page, "a red fox")


def test_history_lasts_through_reload_back_and_a_second_window(page: Any, visit: Callable[..., Any]) -> None:
    draw(page, "a red fox")
    tile(page, 3).click()
    shown = png(page, 3)
    link = page.url
    draw(page, "a rocket")
    page.go_back()
    ready(page, "a red fox")
    expect(tile(page, 3)).to_have_attribute("aria-selected", "true")
    page.go_forward()
    ready(page, "a rocket")
    page.reload()
    ready(page, "a rocket")
    expect(page.locator("#prompt")).not_to_be_focused()  # keys are for the board
    other = visit()
    other.goto(link)
    ready(other, "a red fox")
    expect(tile(other, 3)).to_have_attribute("aria-selected", "true")
    assert png(other, 3) == shown
    other.goto("/#00000000/1")
    expect(other.locator("#trouble")).to_contain_text("no longer in the server's memory")
    ready(other, "a rocket")


def test_a_second_window_sees_what_the_first_draws(page: Any, visit: Callable[..., Any]) -> None:
    other = visit()
    draw(page)
    expect(other.locator("#history li")).to_have_count(1)
    ready(other, "a red fox")


def test_parameters_are_copied_and_the_command_draws_the_picture(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    draw(page)
    tile(page, 2).click()
    data = png(page, 2)
    page.click("#json")
    expect(page.locator("#said")).to_have_text("JSON copied")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == parameters(data)
    page.click("#command")
    expect(page.locator("#said")).to_have_text("Command copied")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[0] == "krea-sample"
    result = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "again").iterdir()
    assert picture.pixels(path).tobytes() == Image.open(BytesIO(data)).tobytes()


def test_copying_works_where_the_browser_has_no_clipboard_to_offer(page: Any) -> None:
    """As on a phone in the same network: without https a page gets no clipboard object."""
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    draw(page)
    tile(page, 2).click()
    page.click("#json")
    expect(page.locator("#said")).to_have_text("JSON copied")
    page.focus("#words")
    page.keyboard.press("Control+v")
    expect(page.locator("#words")).to_have_value(containing(parameters(png(page, 2))["model"]["sha256"]))


def test_a_downloaded_picture_opens_again(page: Any, tmp_path: Path) -> None:
    draw(page)
    tile(page, 0).click()
    tile(page, 3).click(modifiers=["Shift"])
    ready(page, "a red fox")
    expect(tile(page, 5).locator(".caption")).to_have_text("45 %")
    tile(page, 5).click()
    data = png(page, 5)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename.startswith("a-red-fox-s")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    assert path.read_bytes() == data
    with page.expect_download():
        page.keyboard.press("d")
    page.click("#settings")
    with page.expect_file_chooser() as chooser:
        page.click("#open")
    chooser.value.set_files(path)
    expect(page.locator("#from")).to_contain_text("again")
    expect(page.locator(".tile.done")).to_have_count(1)
    assert Image.open(BytesIO(png(page, 0))).tobytes() == Image.open(BytesIO(data)).tobytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    page.set_input_files("#file", tmp_path / "plain.png")
    expect(page.locator("#trouble")).to_contain_text("plain.png holds no parameters")


def test_keeping_saves_the_png(page: Any, out: Path) -> None:
    draw(page)
    tile(page, 4).click()
    page.keyboard.press("k")
    expect(page.locator("#keep")).to_have_text("Kept")
    (path,) = out.iterdir()
    assert path.read_bytes() == png(page, 4)
    expect(page.locator("#said")).to_have_text(f"Kept as {path.name}")
    expect(tile(page, 4)).to_have_class("tile done kept")
    expect(page.locator("#history .name").last).to_have_text("Kept pictures")


def test_progress_previews_stop_and_go_on(page: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krea_sampler.serve.worker.LEAST_S", 0.0)
    gate.open.clear()
    page.fill("#prompt", "a red fox")
    page.press("#prompt", "Enter")
    drawn = page.locator(".tile.drawing")
    expect(drawn).to_have_count(1)
    expect(drawn.locator("img")).to_have_attribute("src", containing("data:image/jpeg;base64,"))
    expect(page.locator("#progress")).to_contain_text("0 of 12")
    expect(page.locator("#spoken")).to_have_text("Drawing")
    shot(page, "drawing")
    page.click("#stop")
    expect(page.locator(".tile.stopped")).to_have_count(12)
    expect(page.locator("#progress")).to_have_text("")
    gate.open.set()
    page.click("#resume")
    ready(page, "a red fox")
    expect(page.locator("#spoken")).to_have_text("12 of 12 pictures are drawn")


def test_the_newest_board_comes_first(page: Any, gate: Gate) -> None:
    gate.open.clear()
    page.fill("#prompt", "a red fox")
    page.press("#prompt", "Enter")
    expect(page.locator(".tile.drawing")).to_have_count(1)
    page.fill("#prompt", "a rocket")
    page.press("#prompt", "Enter")
    expect(page.locator("#title")).to_have_text("a rocket")
    gate.open.set()
    ready(page, "a rocket")
    page.keyboard.press("Escape")
    page.keyboard.press("[")
    ready(page, "a red fox")


def test_settings_are_used_and_a_picture_is_drawn_again_with_others(page: Any) -> None:
    page.click("#settings")
    expect(page.locator("#steps")).to_have_attribute("placeholder", "3")
    page.fill("#count", "4")
    page.fill("#seed", "9007199254740993")  # above what a script can count to
    page.fill("#guidance", "0.5")
    draw(page, count=4)
    found = parameters(png(page, 0))
    assert (found["seeds"], found["guidance"], found["steps"]) == ([9007199254740993], 0.5, 3)
    tile(page, 0).click()
    page.click("#again")
    expect(page.locator("#trouble")).to_contain_text("Change steps, guidance or size")
    page.fill("#steps", "5")
    page.click("#again")
    expect(page.locator(".tile.done")).to_have_count(1)
    assert parameters(png(page, 0)) == found | {"steps": 5}
    shot(page, "settings")


def test_wide_pictures_have_wide_frames_and_fit_the_window(page: Any) -> None:
    page.click("#settings")
    page.fill("#width_px", "32")
    page.fill("#negative", "fog")
    draw(page)
    frame = tile(page, 0).locator(".frame").bounding_box()
    assert abs(frame["width"] / frame["height"] - 2) < 0.05
    for number in range(12):
        expect(tile(page, number)).to_be_in_viewport(ratio=1)
    tile(page, 0).click()
    expect(page.locator("#recipe")).to_contain_text("32 \u00d7 16 px")
    expect(page.locator("#recipe")).to_contain_text("away from fog")
    shot(page, "wide")


def test_wrong_input_is_one_sentence_on_the_page(page: Any) -> None:
    draw(page)
    tile(page, 0).click()
    page.fill("#words", "a red fox")
    page.press("#words", "Enter")
    expect(page.locator("#trouble")).to_have_text(
        "These are already the words of the picture; say something else to go toward."
    )
    page.click("#more")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_picture_that_fails_says_why(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("not enough memory for a side of 16 px; draw smaller")

    monkeypatch.setattr(bundle.Bundle, "pictures", greedy)
    page.fill("#prompt", "a red fox")
    page.press("#prompt", "Enter")
    expect(page.locator(".tile.failed")).to_have_count(12)
    expect(tile(page, 0).locator(".caption")).to_contain_text("not enough memory")


def test_a_long_prompt_leaves_the_buttons_in_sight(page: Any) -> None:
    draw(page, ("a red fox in the snow " * 170).strip())
    tile(page, 0).click()
    expect(page.locator("#more")).to_be_in_viewport()
    shot(page, "long")


def test_text_stays_text(page: Any) -> None:
    prompt = '<img src=x onerror="document.title=1"><b>fox</b> &amp; "so on"'
    draw(page, prompt)
    tile(page, 0).click()
    expect(page.locator("#recipe p").first).to_have_text(prompt)
    assert page.locator("#title b").count() == 0


def test_everything_that_can_be_used_has_a_name(page: Any) -> None:
    draw(page)
    tile(page, 0).click()
    page.click("#settings")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, a[href], [role=option], [role=listbox], img')]
        .filter((node) => node.checkVisibility())
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length ||
            node.getAttribute('alt') || node.querySelector('img[alt]:not([alt=""])') ||
            (node.tagName === 'IMG' && node.closest('[aria-label], button, a'))))
        .map((node) => node.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["laptop", "phone"])
def test_it_fits_the_window_in_both_colours(visit: Callable[..., Any], scheme: str, size: str) -> None:
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = visit(color_scheme=scheme, **(phone if size == "phone" else {}))
    draw(page)
    (tile(page, 3).tap if size == "phone" else tile(page, 3).click)()
    expect(page.locator("#more")).to_be_in_viewport()
    expect(page.locator("#large img")).to_have_js_property("complete", True)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    if size == "laptop":  # the whole board is seen without scrolling
        for number in range(12):
            expect(tile(page, number)).to_be_in_viewport(ratio=1)
    red, green, blue = json.loads(
        page.evaluate("getComputedStyle(document.body).backgroundColor.replace('rgb(', '[').replace(')', ']')")
    )
    assert red == green == blue  # no tint around pictures
    assert (red > 128) == (scheme == "light")
    shot(page, f"{size}-{scheme}")


def test_a_server_that_went_away_is_said_and_one_that_comes_back_is_found(
    chromium: Any, model: Path, out: Path
) -> None:
    setup = Setup(model=model)
    context = chromium.new_context(viewport=LAPTOP)
    page = context.new_page()
    painter = artist(setup)
    try:
        with listening(painter, setup, out, port=0) as server:
            port = server.server_address[1]
            with answering(server):
                page.goto(address(server))
                draw(page)
                tile(page, 0).click()
                page.click("#keep")
                expect(page.locator("#keep")).to_have_text("Kept")
        page.click("#more")
        expect(page.locator("#trouble")).to_contain_text("The server does not answer")
        with listening(painter, setup, out, port=port) as server, answering(server):
            expect(page.locator("#title")).to_have_text("Kept pictures")
            expect(page.locator(".tile.done")).to_have_count(1)
    finally:
        context.close()
