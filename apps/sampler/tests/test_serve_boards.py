"""Boards, asks and the thread that draws, without a network: order of drawing, stops, changes, reuse, failures."""

import gc
import json
import shlex
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from krea_sampler import picture
from krea_sampler.compose import Artist, Setup, artist
from krea_sampler.drawing import Drawing
from krea_sampler.explore import Mixture
from krea_sampler.order import FORMAT, Order, Weighted
from krea_sampler.safety import Refused
from krea_sampler.serve import asks, kept, worker
from krea_sampler.serve import boards as boards_module
from krea_sampler.serve.boards import Board, Boards, Stopped, Tile
from krea_sampler.serve.engine import Engine, OnStep, Settings
from PIL import Image

SETTINGS = Settings(steps=2, guidance=0.0, width_px=16, height_px=16)


def board(first: int, count: int = 2) -> Board:
    tiles = [Tile(mixture=Mixture.pure("a fox", first + i), settings=SETTINGS, caption="") for i in range(count)]
    return Board(kind="draw", title="a fox", tiles=tiles)


def drawing(color: str = "red") -> Drawing:
    return Drawing(image=Image.new("RGB", (16, 16), color), parameters={"format": 1}, stem="a-fox")


def finish(boards: Boards, png: bytes = b"png") -> Tile:
    taken = boards.take()
    assert taken is not None
    boards.finish(*taken, drawing(), png)
    return taken[1]


def states(one: Board) -> list[str]:
    return [tile.state for tile in one.tiles]


def test_the_newest_board_is_drawn_first_and_its_tiles_in_order() -> None:
    boards, old, new = Boards(), board(0), board(10)
    boards.add(old)
    first = finish(boards)
    boards.add(new)
    assert [first, finish(boards), finish(boards), finish(boards)] == [old.tiles[0], *new.tiles, old.tiles[1]]


def test_take_waits_for_work_and_leaves_at_the_end() -> None:
    boards, got = Boards(), []
    thread = threading.Thread(target=lambda: got.extend([boards.take(), boards.take()]))
    thread.start()
    one = board(0, count=1)
    boards.add(one)
    boards.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got[-1] is None


def test_a_stopped_tile_is_not_drawn_on_and_can_be_resumed() -> None:
    boards, one = Boards(), board(0, count=3)
    boards.add(one)
    finish(boards)
    taken = boards.take()
    assert taken is not None
    boards.advance(*taken, step=1)
    boards.stop(one)
    assert states(one) == ["done", "stopped", "stopped"]
    with pytest.raises(Stopped):
        boards.advance(*taken, step=2)
    with pytest.raises(Stopped):
        boards.finish(*taken, drawing(), b"late")
    boards.resume(one)
    assert states(one) == ["done", "waiting", "waiting"]
    assert finish(boards) is one.tiles[1]


def test_a_failure_ends_its_board_and_no_other() -> None:
    boards, old, new = Boards(), board(0), board(10)
    boards.add(old)
    boards.add(new)
    taken = boards.take()
    assert taken is not None
    boards.fail(*taken, "no memory")
    assert states(new) == ["failed", "failed"]
    assert [tile.error for tile in new.tiles] == ["no memory", "no memory"]
    assert finish(boards) is old.tiles[0]


def test_changes_are_what_came_after_a_number() -> None:
    boards, one, two = Boards(), board(0), board(10)
    boards.add(one)
    boards.add(two)
    found = boards.changes(0, 0)
    assert found is not None
    number, order, changed = found
    assert order[1:] == [one.id, two.id]  # after that of the kept pictures
    assert changed[1:] == [(one, [0, 1]), (two, [0, 1])]
    finish(boards)
    later = boards.changes(number, 0)
    assert later is not None
    assert later[2] == [(two, [0])]
    again = boards.changes(later[0], 0.01)
    assert again is not None
    assert again[2] == []
    boards.close()
    assert boards.changes(0, 10) is None


def test_somebody_who_waits_for_changes_is_woken() -> None:
    boards, got = Boards(), []
    seen = boards.changes(0, 0)
    assert seen is not None
    thread = threading.Thread(target=lambda: got.append(boards.changes(seen[0], 30)))
    thread.start()
    one = board(0)
    boards.add(one)
    thread.join(10)
    assert got[0][2] == [(one, [0, 1])]


def test_a_removed_board_is_stopped_and_comes_back() -> None:
    boards, one = Boards(), board(0)
    boards.add(one)
    finish(boards)
    boards.remove(one, True)
    found = boards.changes(0, 0)
    assert found is not None
    assert one.id not in found[1]
    assert states(one) == ["done", "stopped"]
    boards.remove(one, False)
    back = boards.changes(found[0], 0)
    assert back is not None
    assert (back[1][-1], back[2]) == (one.id, [(one, [0, 1])])


def test_the_same_picture_is_not_drawn_twice() -> None:
    boards, one, two = Boards(), board(0, count=1), board(0)
    boards.add(one)
    finish(boards, b"the picture")
    boards.add(two)
    assert states(two) == ["done", "waiting"]
    assert two.tiles[0].png == b"the picture"


def test_keeping_shows_on_every_board_and_on_the_kept_one() -> None:
    boards, one, two = Boards(), board(0, count=1), board(0, count=1)
    boards.add(one)
    finish(boards, b"the picture")
    boards.add(two)
    boards.mark_kept(two.tiles[0], "a-fox.png")
    assert one.tiles[0].kept == two.tiles[0].kept == "a-fox.png"
    found = boards.changes(0, 0)
    assert found is not None
    shelf = found[2][0][0]
    assert [(tile.kept, tile.png) for tile in shelf.tiles] == [("a-fox.png", b"the picture")]
    with pytest.raises(ValueError, match="remove those"):
        boards.remove(shelf, True)


def test_too_much_waiting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards_module, "MAX_WAITING", 3)
    boards = Boards()
    boards.add(board(0))
    with pytest.raises(ValueError, match="4 pictures would be waiting"):
        boards.add(board(10))
    finish(boards)
    boards.add(board(10))


@pytest.mark.parametrize(("limit", "value"), [("MAX_BOARDS", 3), ("MAX_BYTES", 2500)])
def test_old_finished_boards_are_forgotten(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(boards_module, limit, value)
    boards, all_of_them = Boards(), [board(10 * i, count=1) for i in range(4)]
    for number, one in enumerate(all_of_them):
        boards.add(one)
        if number:  # the first one is never drawn
            boards.resume(one)
            finish(boards, bytes(1000))
        else:
            boards.stop(one)
    found = boards.changes(0, 0)
    assert found is not None
    assert all_of_them[0].id not in found[1]
    assert all_of_them[-1].id in found[1]
    assert len(found[1]) < 5
    with pytest.raises(KeyError):
        boards.get(all_of_them[0].id)


class Scripted:
    """Stands in for the engine: draws in two steps, or does what it is told to."""

    def notes(self, mixture: Mixture) -> str:
        return f"seed {mixture.seeds[0]} is cut"

    def __init__(self, act: Callable[[int], None] = lambda seed: None) -> None:
        self.act = act

    def draw(self, mixture: Mixture, settings: Settings, on_step: OnStep, origin: object) -> Drawing:
        for step in range(settings.steps):
            on_step(step + 1, lambda: Image.new("RGB", (64, 64), "blue"))
        self.act(mixture.seeds[0])
        return drawing()


@contextmanager
def working(boards: Boards, engine: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=worker.work, args=(boards, engine))
    thread.start()
    try:
        yield thread
    finally:
        boards.close()
        thread.join(20)
        assert not thread.is_alive()


def wait(boards: Boards, until: Callable[[], bool]) -> None:
    after = 0
    while not until():
        found = boards.changes(after, 20)
        assert found is not None
        assert found[0] > after, "nothing happens any more"
        after = found[0]


def test_the_worker_draws_boards_with_their_parameters_inside() -> None:
    boards, one, reached = Boards(), board(0), []
    with working(boards, Scripted(lambda seed: reached.append(one.tiles[seed].step))):
        boards.add(one)
        wait(boards, lambda: states(one) == ["done", "done"])
    assert reached == [2, 2]  # every step is told, with or without a preview
    assert one.tiles[0].png == picture.encode(drawing().image, {"format": 1})
    assert one.tiles[1].note == "seed 1 is cut"
    assert (one.tiles[0].parameters, one.tiles[0].stem) == ({"format": 1}, "a-fox")


def test_the_pixels_of_finished_pictures_are_not_held_beside_the_png(
    painter: Artist, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, finish = [], Boards.finish

    def watched(self: Boards, one: Board, tile: Tile, drawn: Drawing, png: bytes, note: str = "") -> None:
        images.append(weakref.ref(drawn.image))
        finish(self, one, tile, drawn, png, note)

    monkeypatch.setattr(Boards, "finish", watched)
    boards, one = Boards(), board(0)
    with working(boards, Engine(painter)):
        boards.add(one)
        wait(boards, lambda: states(one) == ["done", "done"])
    gc.collect()
    assert [image() for image in images] == [None, None]
    assert all(tile.png for tile in one.tiles)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("not enough memory for\n a side of 16 px"), "not enough memory for a side of 16 px"),
        (RuntimeError("NaN"), "NaN"),
        (ValueError(""), "ValueError"),
    ],
)
def test_the_worker_survives_what_drawing_raises(error: Exception, says: str) -> None:
    def act(seed: int) -> None:
        if seed == 0:
            raise error

    boards, bad, good = Boards(), board(0), board(10)
    with working(boards, Scripted(act)):
        boards.add(bad)
        wait(boards, lambda: states(bad) == ["failed", "failed"])
        boards.add(good)
        wait(boards, lambda: states(good) == ["done", "done"])
    assert bad.tiles[0].error == says


def test_a_refused_picture_does_not_stop_its_board() -> None:
    def act(seed: int) -> None:
        if seed == 0:
            raise Refused("this picture was refused: no")

    boards, one = Boards(), board(0)
    with working(boards, Scripted(act)):
        boards.add(one)
        wait(boards, lambda: states(one) == ["failed", "done"])
    assert one.tiles[0].error == "this picture was refused: no"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_nobody_foresaw_is_shown_and_drawing_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    def act(seed: int) -> None:
        if seed == 0:
            raise KeyError("a fault")

    boards, one, other = Boards(), board(0), board(7)
    with working(boards, Scripted(act)):
        boards.add(one)
        wait(boards, lambda: one.tiles[0].state == "failed")
        boards.add(other)
        wait(boards, lambda: states(other) == ["done", "done"])
    assert "broke down" in one.tiles[0].error
    assert "KeyError: 'a fault'" in capfd.readouterr().err


def test_previews_take_their_share_and_no_more() -> None:
    now = [100.0]

    def dear() -> Image.Image:
        now[0] += 2.0
        return Image.new("RGB", (900, 600), "blue")

    pace = worker.Pace(lambda: now[0])
    assert pace.make(dear) == ""  # too early
    now[0] += 1
    assert pace.make(dear).startswith("data:image/jpeg;base64,")
    now[0] += 7.9
    assert pace.make(dear) == ""
    now[0] += 0.2
    assert pace.make(dear)
    now[0] += 1000
    assert pace.make(lambda: None) == ""


@pytest.fixture
def painter(model: Path) -> Artist:
    return artist(Setup(model=model))


def asked(painter: Artist, boards: Boards, **ask: object) -> Board:
    found = asks.board(json.loads(json.dumps(ask)), Engine(painter), boards)
    boards.add(found)
    return found


def test_each_kind_of_ask_makes_its_board(painter: Artist) -> None:
    boards = Boards()
    drawn = asked(painter, boards, kind="draw", prompt=" a fox ", seed="7", count=3, steps=5)
    assert [(t.mixture, t.caption) for t in drawn.tiles] == [
        (Mixture.pure("a fox", 7 + i), f"seed {7 + i}") for i in range(3)
    ]
    here, there = {"board": drawn.id, "tile": 1}, {"board": drawn.id, "tile": 2}
    more = asked(painter, boards, kind="more", of=here, distance=0.3, count=4, seed=1)
    assert more.tiles[0].mixture == drawn.tiles[1].mixture
    assert {t.settings.steps for t in more.tiles} == {5}
    assert more.tiles[2].origin["parents"] == [drawn.tiles[1].mixture.record()]
    assert more.parents == ((drawn.id, 1),)
    between = asked(painter, boards, kind="between", of=here, to=there, count=5)
    assert [t.caption for t in between.tiles] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert (between.tiles[0].mixture, between.tiles[-1].mixture) == (drawn.tiles[1].mixture, drawn.tiles[2].mixture)
    toward = asked(painter, boards, kind="toward", of={"board": more.id, "tile": 2}, prompt="a rocket", count=3)
    assert {t.mixture.seeds for t in toward.tiles} == {more.tiles[2].mixture.seeds}
    assert toward.tiles[1].mixture.prompt_weights == (0.5, 0.5)
    assert toward.title == "a fox to a rocket"
    again = asked(painter, boards, kind="repeat", of=here, steps=9)
    assert [(t.mixture, t.settings.steps) for t in again.tiles] == [(drawn.tiles[1].mixture, 9)]


def test_new_seeds_are_new_each_time(painter: Artist) -> None:
    boards = Boards()
    seeds = {asked(painter, boards, kind="draw", prompt="a fox", count=1).tiles[0].mixture.seeds for _ in range(5)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ([], "no JSON object"),
        ({}, "an ask of kind None"),
        ({"kind": "paint"}, "use one of draw, more"),
        ({"kind": ["draw"]}, "an ask of kind"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "colour": 1}, "draw knows no 'colour'"),
        ({"kind": "draw", "prompt": " ", "count": 1}, "an empty prompt"),
        ({"kind": "draw", "prompt": None, "count": 1}, "an empty prompt"),
        ({"kind": "draw", "prompt": "x" * 4001, "count": 1}, "at most 4000"),
        ({"kind": "draw", "prompt": "a fox", "count": 0}, "from 1 to 24"),
        ({"kind": "draw", "prompt": "a fox", "count": 25}, "from 1 to 24"),
        ({"kind": "draw", "prompt": "a fox", "count": "12"}, "from 1 to 24"),
        ({"kind": "draw", "prompt": "a fox", "count": True}, "from 1 to 24"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "seed": -1}, "use a whole number"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "seed": 1.5}, "use a whole number"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "seed": "1e9"}, "use a whole number"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "seed": "9" * 30}, "use a whole number"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "steps": "many"}, "'many' steps"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "guidance": [1]}, "guidance"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "negative": 5}, "lead away from"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "guidance": 10**400}, "guidance"),
        ({"kind": "draw", "prompt": "a fox", "count": 1, "width_px": 30}, "multiples of 8"),
        ({"kind": "more", "of": {"board": "none", "tile": 0}, "distance": 0.5, "count": 2}, "gone from the server"),
        ({"kind": "more", "of": {"board": [], "tile": 0}, "distance": 0.5, "count": 2}, "pick one of a board"),
        ({"kind": "more", "of": {"board": "HERE", "tile": 9}, "distance": 0.5, "count": 2}, "pick one of a board"),
        ({"kind": "more", "of": {"board": "HERE", "tile": -1}, "distance": 0.5, "count": 2}, "pick one of a board"),
        ({"kind": "more", "of": {"board": "HERE", "tile": 0}, "distance": 0, "count": 2}, "distance 0"),
        ({"kind": "more", "of": {"board": "HERE", "tile": 0}, "distance": None, "count": 2}, "must be a number"),
        ({"kind": "more", "of": {"board": "HERE", "tile": 0}, "distance": 10**400, "count": 2}, "must be a number"),
        ({"kind": "more", "of": {"board": "HERE", "tile": 0}, "distance": 0.5, "count": 1}, "from 2 to 24"),
        (
            {"kind": "between", "of": {"board": "HERE", "tile": 0}, "to": {"board": "HERE", "tile": 0}, "count": 3},
            "nothing between a picture and itself",
        ),
        ({"kind": "toward", "of": {"board": "HERE", "tile": 0}, "prompt": "a fox", "count": 3}, "already the words"),
        ({"kind": "repeat", "parameters": "{"}, "are damaged"),
        ({"kind": "repeat", "parameters": "[]"}, "are damaged"),
        ({"kind": "repeat", "parameters": '{"model": "x"}'}, "are damaged"),
        ({"kind": "repeat", "parameters": '{"model": {"sha256": "x"}}'}, "was drawn by"),
    ],
)
def test_a_wrong_ask_is_one_sentence(painter: Artist, ask: Any, says: str) -> None:
    boards = Boards()
    here = asked(painter, boards, kind="draw", prompt="a fox", count=1)
    if isinstance(ask, dict):
        for place in (ask.get("of"), ask.get("to")):
            if isinstance(place, dict) and place["board"] == "HERE":
                place["board"] = here.id
    with pytest.raises(ValueError, match=says) as found:
        asks.board(ask, Engine(painter), boards)
    assert "\n" not in str(found.value)


def test_pictures_on_disk_are_found_and_strangers_passed_over(
    painter: Artist, make_model: Callable[[int], Path], tmp_path: Path
) -> None:
    engine, folder = Engine(painter), tmp_path / "kept"
    assert kept.find(folder, engine) == []
    mixture = Mixture.pure("a fox", 5)
    tile = Tile(mixture=mixture, settings=engine.settle(), caption="")
    with pytest.raises(ValueError, match="not finished"):
        kept.keep(tile, folder)
    drawn = engine.draw(mixture, tile.settings)
    tile.finish(drawn.parameters, drawn.stem, picture.encode(drawn.image, drawn.parameters))
    tile.kept = kept.keep(tile, folder)
    assert kept.keep(tile, folder) == tile.kept == "a-fox-s5.png"
    other = Engine(artist(Setup(model=make_model(1))))
    stranger = other.draw(mixture, other.settle())
    picture.save(picture.encode(stranger.image, stranger.parameters), folder, "stranger")
    (folder / "broken.png").write_bytes(tile.png[:100])
    (folder / "folder.png").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "plain.png")
    (found,) = kept.find(folder, engine)
    assert (found.mixture, found.settings, found.kept, found.png) == (mixture, tile.settings, tile.kept, tile.png)


def test_the_command_line_is_what_a_shell_takes(tmp_path: Path) -> None:
    order = Order(prompts=("it's a fox",), seeds=(3,), steps=4, guidance=1.5)
    square = asdict(order.sized(32, 32)) | {"format": FORMAT}
    expected = ["krea-sample", "it's a fox", "--seed", "3", "--steps", "4", "--guidance", "1.5"]
    assert shlex.split(kept.command(square, "x", Setup())) == [*expected, "--side-px", "32"]
    wide = asdict(replace(order, negative="fog").sized(64, 32)) | {"format": FORMAT}
    file = tmp_path / "a b.safetensors"
    file.touch()
    setup = Setup(
        model="some/model",
        preset="turbo",
        dtype="bfloat16",
        quantise="int8",
        blocks="memory",
        loras=(Weighted(path=file, strength=0.5),),
    )
    expected += ["--width-px", "64", "--height-px", "32", "--negative", "fog", "--preset", "turbo"]
    made_of = [
        "--model",
        "some/model",
        "--dtype",
        "bfloat16",
        "--quantise",
        "int8",
        "--blocks",
        "memory",
        "--lora",
        f"{file}:0.5",
    ]
    assert shlex.split(kept.command(wide, "x", setup)) == [*expected, *made_of]
    mixed = kept.command({"format": "mixture/1"}, "a-fox-s3-mix", setup)
    assert shlex.split(mixed) == ["krea-sample", "--from-png", "a-fox-s3-mix.png", *made_of]
