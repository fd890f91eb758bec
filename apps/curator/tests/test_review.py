"""Decisions of a person: on rows in memory, over HTTP, and in a real browser."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from queue import Queue

import httpx
import pytest
from krea_curator.review.decisions import decide
from krea_curator.review.server import Review, serve
from krea_curator.review.shelves import shelves, shown
from krea_data.limits.stages import stages
from krea_data.memory import MemoryTable
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask, MemoryBlobs, rows

FIRST = FakeTask(name="flat")
LAST = FakeTask(name="caption", after=("flat",))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
STAGES = stages({"sft": {"flat.entropy": {"least": 2.0}}})


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def table(blobs: MemoryBlobs) -> MemoryTable:
    """Ten rows: two are dropped as flat, the others are kept by both tasks, with entropies from 0.2 on."""
    table = MemoryTable(rows(10, blobs))
    table.register([FIRST, LAST])
    flat = [Result(value={"entropy": 0.2 * n + 1}, drop="flat" if n < 2 else None) for n in range(10)]
    table.put("flat", {row.id: flat[n] for n, row in enumerate(rows(10))})
    caption = Result(value={"short": {"text": "a thing", "source": "label"}})
    table.put("caption", {row.id: caption for row in rows(10)[2:]})
    return table


def by_id(table: MemoryTable) -> dict[str, Row]:
    return {row.id: row for row in table.scan()}


def test_shelves_are_what_there_is_to_decide(table: MemoryTable) -> None:
    found = {shelf.name: shelf.ids for shelf in shelves(list(table.scan()), STAGES, "caption")}
    assert found["dropped flat flat"] == ("synthetic/00000", "synthetic/00001")
    assert len(found["kept"]) == 8
    border = found["border sft flat.entropy 2"]
    assert border[:2] == ("synthetic/00004", "synthetic/00005"), "entropy 1.8 and 2, the nearest from both sides"
    assert "decided" not in found


def test_a_kept_row_is_dropped_and_taken_back(table: MemoryTable) -> None:
    row = by_id(table)["synthetic/00003"]
    (dropped,) = decide(table, [row], keep=False, note="blurred")
    assert by_id(table)[row.id] == dropped
    assert dropped.dropped == ("review", "review")
    assert shown(dropped)["review"]["note"] == "blurred"
    (back,) = decide(table, [dropped], keep=True)
    assert back.dropped is None
    assert by_id(table)[row.id].dropped is None


def test_a_dropped_row_goes_on_and_is_taken_back(table: MemoryTable) -> None:
    row = by_id(table)["synthetic/00000"]
    assert table.pending("caption") == 0
    (kept,) = decide(table, [row], keep=True)
    assert kept.dropped is None
    assert kept.results["flat"].value["entropy"] == 1
    assert table.pending("caption") == 1, "the next task gets it by itself"
    assert shelves([kept], STAGES, "caption")[0].name == "decided"
    (again,) = decide(table, [kept], keep=False)
    assert again.dropped == ("flat", "flat")
    assert decide(table, [again], keep=False) == [again], "which it is already"


@pytest.fixture
def address(table: MemoryTable, blobs: MemoryBlobs) -> str:
    """The page on a thread that ends with the tests."""
    ready: Queue[str] = Queue()
    review = Review(table, blobs, STAGES, "caption")
    threading.Thread(target=serve, args=(review,), kwargs={"ready": ready.put}, daemon=True).start()
    return ready.get(timeout=20)


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    """Asks the page below its key."""
    with httpx.Client(base_url=address) as client:
        yield client


def test_the_page_asks_and_decides(client: httpx.Client, table: MemoryTable, blobs: MemoryBlobs) -> None:
    root = str(client.base_url).rstrip("/").rpartition("/")[0]
    assert httpx.get(root + "/").status_code == 404
    assert httpx.get(root + "/wrong/shelves").status_code == 404
    assert "<title>Review" in client.get("").text
    assert client.get("main.js").headers["content-type"].startswith("text/javascript")
    names = {shelf["name"]: shelf["rows"] for shelf in client.get("shelves").json()}
    assert names["kept"] == 8
    page = client.get("rows", params={"shelf": "kept", "start": 5}).json()
    assert (page["total"], page["next"], len(page["rows"])) == (8, 8, 3)
    assert page["rows"][0]["captions"] == {"short": "a thing"}
    blob = page["rows"][0]["blob"]
    answer = client.get(f"picture/{blob}")
    assert answer.content == blobs.get(blob)
    assert answer.headers["content-type"] == "image/png"
    ids = [row["id"] for row in page["rows"]]
    changed = client.post("decide", content=json.dumps({"ids": ids, "keep": False, "note": "dull"})).json()
    assert [row["dropped"] for row in changed["rows"]] == [["review", "review"]] * 3
    assert {row.id for row in table.scan() if row.dropped == ("review", "review")} == set(ids)
    assert {shelf["name"]: shelf["rows"] for shelf in client.get("shelves").json()}["kept"] == 5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "a decision is"),
        ("[]", "a decision is"),
        ('{"ids": "x", "keep": true}', "a list of ids"),
        ('{"ids": [], "keep": 1}', "true or false"),
        ('{"ids": [], "keep": true, "note": 7}', "a note is a text"),
        ('{"ids": ["nowhere"], "keep": true}', "there is no row 'nowhere'"),
    ],
)
def test_bad_decisions_are_refused(client: httpx.Client, body: str, said: str) -> None:
    answer = client.post("decide", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert client.get("rows", params={"shelf": "x"}).status_code == 400
    assert client.get("picture/" + "0" * 64).status_code == 404


def test_a_person_decides_with_the_keyboard(address: str, table: MemoryTable) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    path = os.environ.get("KREA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    playwright.expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{path} does not start here: {str(error).splitlines()[0]}")
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="kept by all tasks").click()
        playwright.expect(page.get_by_role("option")).to_have_count(8)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("d")
        playwright.expect(page.locator(".row.drop")).to_have_count(1)
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.keyboard.press("d")
        playwright.expect(page.locator(".row.drop")).to_have_count(3)
        browser.close()
    assert errors == []
    dropped = [row.id for row in table.scan() if row.dropped == ("review", "review")]
    assert dropped == ["synthetic/00003", "synthetic/00004", "synthetic/00005"]
