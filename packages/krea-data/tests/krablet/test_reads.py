"""Reads through the pools, against what `Krablet.scan` gives and what PostgreSQL says of its plans."""

import asyncio
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.errors import SchemaError, ShardDown
from krea_data.krablet.moves.move import move
from krea_data.krablet.moves.moving import Mover
from krea_data.krablet.readers.arrow import Writer, batches, rows_of
from krea_data.krablet.readers.filters import parse_filter
from krea_data.krablet.readers.plain import row_of
from krea_data.krablet.readers.pools import Pool, TooLarge, TooSlow
from krea_data.krablet.readers.reads import Limits, Reads
from krea_data.krablet.readers.scanning import letters
from krea_data.krablet.readers.selects import Known, Page, all_columns, keys_statement, page_statement, parse_columns
from krea_data.krablet.records.reads import RecordReads
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record
from krea_data.krablet.rpc import Busy
from krea_data.rows import Result, Row
from krea_data.testing import rows

pytestmark = pytest.mark.postgres

Use = Callable[..., Any]


@pytest.fixture
def use(krablet: Krablet) -> Use:
    """A function that does something with `Reads` of the krablet in an event loop."""

    def do(work: Callable[[Reads], Coroutine[Any, Any, Any]], dsns: Any = None, **options: Any) -> Any:
        async def main() -> Any:
            reads = Reads(dsns or krablet.dsns, **options)
            try:
                return await work(reads)
            finally:
                await reads.close()

        return asyncio.run(main())

    return do


@pytest.fixture
def filled(krablet: Krablet) -> Krablet:
    """600 rows, of which a task kept some and dropped some."""
    krablet.add(rows(600))
    ids = [row.id for row in rows(600)]
    krablet.put(
        "first", {one: Result(value={"n": n}, drop="dark" if n % 3 else None) for n, one in enumerate(ids[:400])}
    )
    krablet.put("late", {one: Result(value={"n": -n}) for n, one in enumerate(ids[:100])})
    krablet.put("first", {ids[0]: Result(value={"n": 7})})  # the newest answer comes last
    return krablet


async def scanned(reads: Reads, **asked: Any) -> list[tuple]:
    scan = await reads.scan(**asked)
    return [cells async for page in scan.pages() for cells in page]


def whole(reads_rows: list[tuple], tasks: tuple[str, ...] = ("first", "late")) -> list[Row]:
    """The rows by way of an Arrow stream."""
    writer = Writer(all_columns(tasks))
    pieces = [writer.page(reads_rows), writer.end(len(reads_rows), [])]
    return [row for batch in batches(pieces) for row in rows_of(batch)]


def test_all_ways_to_read_give_the_same_rows(filled: Krablet, use: Use) -> None:
    wanted = list(filled.scan())
    ids = [row.id for row in wanted]

    async def work(reads: Reads) -> None:
        assert whole(await scanned(reads)) == wanted
        assert [row_of(plain) for plain in await asyncio.gather(*map(reads.get, ids)) if plain] == wanted
        assert whole([tuple(cells) for cells in (await reads.get_many([*ids, "nobody"])).rows]) == wanted
        assert await reads.get("nobody") is None

    use(work)


def test_scans_are_cut_where_they_should_be(filled: Krablet, use: Use) -> None:
    kept = [row.id for row in filled.scan(kept_by=["first"])]

    async def work(reads: Reads) -> None:
        async def ids(**asked: Any) -> list[str]:
            return [row_id for (row_id,) in await scanned(reads, columns=[], **asked)]

        assert await ids(kept_by=["first"]) == kept
        assert await ids(kept_by=["first"], limit=7) == kept[:7]
        assert await ids(kept_by=["first"], after=kept[6], limit=7) == kept[7:14]
        assert await ids(limit=0) == await ids(kept_by=["unheard_of"]) == []
        where = {"field": "first.value.n", "op": "lt", "value": 9}
        assert await ids(where=where, kept_by=["first"]) == kept[:3]
        assert await reads.count(kept_by=["first"]) == {"rows": len(kept), "exact": True, "missing": []}
        assert await reads.count(cap=100) == {"rows": 100, "exact": False, "missing": []}
        assert await reads.count(where=where) == {"rows": 9, "exact": True, "missing": []}

    use(work)


def test_columns_are_what_was_asked_for(filled: Krablet, use: Use) -> None:
    async def work(reads: Reads) -> None:
        names = ["meta.label", "first.kept", "first.value.n", "late", "unheard_of.dropped", "added_at", "id"]
        scan = await reads.scan(columns=names, limit=2)
        writer = Writer(scan.columns)
        pieces = [writer.page(page) async for page in scan.pages()]
        table = pa.ipc.open_stream(io.BytesIO(b"".join([*pieces, writer.end(2, [])]))).read_all()
        late = ["late.value", "late.dropped", "late.done_at"]
        assert table.column_names == ["id", *names[:3], *late, "unheard_of.dropped", "added_at"]
        assert table["meta.label"].to_pylist() == ['"thing 0"', '"thing 1"']
        assert table["first.kept"].to_pylist() == [True, False]
        assert table["first.value.n"].to_pylist() == ["7", "1"]
        assert table["unheard_of.dropped"].null_count == 2
        assert table.schema.field("added_at").type == pa.timestamp("us", "UTC")
        assert table.schema.field("late.value").metadata == {b"krablet": b"json"}
        for bad in ("sql", ["now()"], ["meta.a", "Late"], ["first.value.a\0"], [1]):
            with pytest.raises(ValueError, match="columns"):
                await reads.scan(columns=bad)
        with pytest.raises(ValueError, match="task 'unheard_of'"):
            await reads.scan(where={"field": "unheard_of.kept", "op": "exists"})

    use(work)


def test_gets_at_one_time_are_few_statements(filled: Krablet, use: Use) -> None:
    ids = [row.id for row in rows(600)]

    async def work(reads: Reads) -> None:
        found = await asyncio.gather(*(reads.get(one) for one in ids * 3))
        assert [plain[0] for plain in found if plain] == ids * 3
        assert sum(gets.batches for gets in reads._gets.values()) <= 10  # 1,800 gets of 600 ids, 200 keys a batch

    use(work)


def test_a_get_sees_what_was_written_before_it(filled: Krablet, use: Use) -> None:
    one = rows(1)[0].id

    async def work(reads: Reads) -> None:
        for n in range(20):
            background = [asyncio.ensure_future(reads.get(one)) for _ in range(5)]
            await asyncio.sleep(0)
            await asyncio.to_thread(filled.put, f"task_{n}", {one: Result(value={"n": n})})
            plain = await reads.get(one)
            assert plain is not None
            assert row_of(plain).results[f"task_{n}"].value == {"n": n}
            await asyncio.gather(*background)

    use(work)


def test_a_batch_that_fails_fails_only_its_own(filled: Krablet, use: Use) -> None:
    async def work(reads: Reads) -> None:
        good, bad = await asyncio.gather(reads.get("synthetic/00001"), reads.get("a\0"), return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert isinstance(good, list)
        gone = asyncio.ensure_future(reads.get("synthetic/00001"))
        other = asyncio.ensure_future(reads.get("synthetic/00001"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await other == good

    use(work)


def test_large_rows_make_small_pages(krablet: Krablet, use: Use) -> None:
    krablet.add(Row(id=f"{n:04d}", blob="", meta={"text": "x" * 50_000}) for n in range(400))

    async def work(reads: Reads) -> None:
        scan = await reads.scan()
        pages = [page async for page in scan.pages()]
        assert sum(map(len, pages)) == 400
        assert max(letters(page) for page in pages[2:]) < 5 << 19
        with pytest.raises(TooLarge, match="over 1000000 bytes"):
            await reads.get_many([f"{n:04d}" for n in range(100)])
        with pytest.raises(ValueError, match="at most 1000"):
            await reads.get_many(["a"] * 1001)

    use(work, limits=Limits(answer_bytes=1_000_000))


@pytest.fixture
def blocked(filled: Krablet) -> Iterator[None]:
    """Somebody holds a lock on the images of all shards."""
    connections = [psycopg.connect(dsn) for dsn in filled.dsns]
    for connection in connections:
        connection.execute("lock table images in access exclusive mode")
    yield
    for connection in connections:
        connection.close()


@pytest.mark.usefixtures("blocked")
def test_what_takes_too_long_is_ended(use: Use) -> None:
    async def work(reads: Reads) -> None:
        for read in (reads.get("synthetic/00001"), reads.count(), scanned(reads), reads.get_many(["a"])):
            with pytest.raises(TooSlow, match=r"within 0\.1 s"):
                await read

    use(work, limits=Limits(get_s=0.1, many_s=0.1, page_s=0.1, count_s=0.1))


@pytest.mark.usefixtures("blocked")
def test_who_finds_the_line_full_is_told(use: Use) -> None:
    async def work(reads: Reads) -> None:
        reading = [asyncio.ensure_future(reads.get_many([f"{n}"])) for n in range(40)]
        answers = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Busy, TooSlow}
        assert any("in line" in str(answer) for answer in answers)
        assert all(pool.state.waiting == pool.state.busy == 0 for pool in reads.fleet.pools.values())

    use(work, connections=2, line=3, wait_s=0.5, limits=Limits(many_s=0.2))


def test_long_reads_leave_a_connection_to_the_others(filled: Krablet, use: Use) -> None:
    async def work(reads: Reads) -> None:
        with psycopg.connect(filled.dsns[0]) as one, psycopg.connect(filled.dsns[1]) as two:
            for connection in (one, two):  # results only: gets of ids alone go on
                connection.execute("lock table result_late in access exclusive mode")
            counts = [
                asyncio.ensure_future(reads.count(where={"field": "late.kept", "op": "exists"})) for _ in range(5)
            ]
            await asyncio.sleep(0.1)
            assert len((await reads.get_many(["synthetic/00001"], [])).rows) == 1
            one.rollback()
            two.rollback()
        assert [count["rows"] for count in await asyncio.gather(*counts)] == [100] * 5

    use(work, connections=2)


def test_sessions_cannot_write(filled: Krablet) -> None:
    async def work() -> None:
        pool = Pool(0, filled.dsns[0])
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await pool.run(lambda session: session.rows(b"delete from images returning id", {}))
        await pool.close()

    asyncio.run(work())


def test_a_connection_that_died_is_replaced(filled: Krablet, use: Use) -> None:
    async def work(reads: Reads) -> None:
        await reads.count()
        for dsn in filled.dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'krablet reader'"
                )
        assert (await reads.count())["rows"] == 600
        assert await reads.get("synthetic/00001") is not None

    use(work)


def test_a_server_that_dies_while_a_reader_connects_is_down(
    filled: Krablet, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = psycopg.AsyncConnection.connect

    async def cut_off(*given: Any, **named: Any) -> Any:
        connection = await connect(*given, **named)
        await connection.close()
        return connection

    async def work(reads: Reads) -> None:
        monkeypatch.setattr("krea_data.krablet.readers.pools.AsyncConnection.connect", cut_off)
        with pytest.raises(ShardDown, match="does not answer"):
            await reads.get("synthetic/00001")

    use(work)


def test_a_shard_that_is_down_fails_its_keys_only(filled: Krablet, use: Use) -> None:
    dsns = [filled.dsns[0], make_conninfo(filled.dsns[1], port=1)]
    mine = {row.id: filled.router.shard(row.id) for row in rows(600)}
    up = [one for one, shard in mine.items() if shard == 0]
    down = next(one for one, shard in mine.items() if shard == 1)

    async def work(reads: Reads) -> None:
        assert await reads.get(up[0]) is not None
        assert len((await reads.get_many(up[:50], [])).rows) == 50
        for read in (reads.get(down), reads.get_many([up[0], down], []), reads.count(), scanned(reads)):
            with pytest.raises(ShardDown, match="shard 1"):
                await read
        found = await reads.get_many([up[0], down], partial=True)
        assert ([cells[0] for cells in found.rows], len(found.missing)) == ([up[0]], 1)
        count = await reads.count(partial=True)
        assert (count["rows"], count["exact"], len(count["missing"])) == (len(up), False, 1)
        scan = await reads.scan(columns=[], partial=True)
        assert [row_id for page in [page async for page in scan.pages()] for (row_id,) in page] == up
        assert "shard 1" in scan.missing[0]
        assert [shard["up"] for shard in await reads.fleet.status()] == [True, False]

    use(work, dsns)


def test_what_is_no_krablet_is_named(new_dsns: Callable[[int], list[str]], filled: Krablet, use: Use) -> None:
    async def work(reads: Reads) -> None:
        with pytest.raises(SchemaError, match=r"open it once|in their order"):
            await reads.get("a")

    use(work, new_dsns(1))
    use(work, list(reversed(filled.dsns)))
    with pytest.raises(ValueError, match="DSN of shard 0 cannot be read"):
        use(work, ["host='"])
    with pytest.raises(ValueError, match="list with the DSN"):
        use(work, "host=a")


def test_keys_and_pages_are_found_in_the_index(new_dsns: Callable[[int], list[str]]) -> None:
    (dsn,) = new_dsns(1)
    with Krablet([dsn]) as krablet, psycopg.connect(dsn, autocommit=True) as connection:
        krablet.add(rows(5000))
        krablet.put("first", {row.id: Result() for row in rows(5000)})
        connection.execute("analyze")
        known = Known(version=0, tasks=("first",))

        def plan(statement: Any, values: dict[str, Any]) -> str:
            lines = connection.execute("explain " + statement.as_string(), values).fetchall()
            return "\n".join(line for (line,) in lines)

        values: dict[str, Any] = {}
        by_key = keys_statement(known, all_columns(("first",)), values)
        found = plan(by_key, {**values, "ids": [row.id for row in rows(100)]})
        assert "images_by_id" in found
        assert "result_first_pkey" in found
        assert "Seq Scan on images" not in found
        for where in (None, {"field": "meta.style", "op": "eq", "value": "3d"}):
            values = {"after": "synthetic/02500", "mine": [0]}
            page = Page(wanted=parse_filter(where), columns=parse_columns(None, ("first",)))
            found = plan(page_statement(known, page, 100, values), values)
            assert "Index Scan using images_by_id" in found
            assert "Index Cond: (id > 'synthetic/02500'" in found
            assert "Seq Scan on images" not in found


def test_a_scan_follows_slots_that_move(filled: Krablet, use: Use) -> None:
    """The map changes between two pages: what one shard has no more comes from the other, once."""
    ids = [row.id for row in rows(600)]

    async def work(reads: Reads) -> list[str]:
        found: list[str] = []
        scan = await reads.scan(columns=[])
        async for page in scan.pages():
            if not found:
                await asyncio.to_thread(moved, filled)
            found += [row_id for (row_id,) in page]
        return found

    assert use(work) == ids


def moved(krablet: Krablet) -> None:
    """Move some slots of shard 0 to shard 1."""
    move(krablet, krablet.router.held(0)[:4], 1)


@pytest.mark.parametrize("source", [0, 1])
def test_slots_whose_mover_died_at_the_hand_over_are_read(
    filled: Krablet, use: Use, monkeypatch: pytest.MonkeyPatch, source: int
) -> None:
    """Their new shard does not serve them yet; the old one says that they are there."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    async def check(reads: Reads) -> None:
        assert await reads.count() == {"rows": 600, "exact": True, "missing": []}
        assert await scanned(reads, columns=[]) == [(row.id,) for row in rows(600)]
        records = RecordReads(reads.fleet, timeout_s=5.0, keys=1000)
        assert len((await records.page("click", None, 1000))["rows"]) == 600

    async def work(reads: Reads) -> None:
        await check(reads)
        with monkeypatch.context() as killed:
            killed.setattr(Mover, "_activate", die)
            with pytest.raises(KeyboardInterrupt):
                await asyncio.to_thread(move, filled, filled.router.held(source)[:1], 1 - source)
        await check(reads)

    for dsn in filled.dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            declare_record(connection, Record("click", (Column("n", "int", "add"),)))
            connection.execute("insert into record_click (slot, id) select slot, id from images")
    use(work)
    use(check)
    with psycopg.connect(filled.dsns[1 - source]) as connection:
        assert connection.execute("select count(*) from away where incoming").fetchall() == [(1,)]


def test_records_are_read_where_they_are(krablet: Krablet, use: Use) -> None:
    record = Record(
        "click", (Column("n", "int", "add"), Column("seen", "time", "max"), Column("info", "json", "merge"))
    )
    for number, dsn in enumerate(krablet.dsns):
        with psycopg.connect(dsn, autocommit=True) as connection:
            declare_record(connection, record)
            for n in range(50):
                if krablet.router.shard(f"{n:02d}") == number:
                    connection.execute(
                        "insert into record_click (slot, id, n, info, state) values (%s, %s, %s, '{}', %s)",
                        (krablet.router.slot(f"{n:02d}"), f"{n:02d}", n, int(n == 7)),
                    )

    async def work(reads: Reads) -> None:
        records = RecordReads(reads.fleet, timeout_s=5.0, keys=100)
        assert (await records.names())["click"][0] == ["n", "int", "add"]
        found = [json.loads(text) for text in await records.get("click", ["03", "07", "nobody", "01"])]
        assert [(one["id"], one["n"], one["seen"], one["info"], one["ver"]) for one in found] == [
            ("01", 1, None, {}, 1),
            ("03", 3, None, {}, 1),
        ]
        ids, place = list[str](), None
        while not ids or place:
            page = await records.page("click", place, 7)
            ids += [json.loads(text)["id"] for text in page["rows"]]
            place = page["next"]
        assert sorted(ids) == [f"{n:02d}" for n in range(50) if n != 7]
        with pytest.raises(LookupError, match="no record 'unheard_of'"):
            await records.get("unheard_of", ["a"])
        for bad in ("click; drop table images", "", "Click"):
            with pytest.raises(ValueError, match="no name"):
                await records.page(bad, None, 5)
        with pytest.raises(ValueError, match="is no place"):
            await records.page("click", ["a", 1], 5)

    use(work)
