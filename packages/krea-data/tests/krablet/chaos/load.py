"""What goes on while others are killed: writes, rows and reads, and an account of what was acknowledged."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import psycopg
from krea_data.krablet import Krablet
from krea_data.krablet.funnels.client import FunnelClient
from krea_data.krablet.readers.remote import RemoteTable
from krea_data.krablet.records.rules import Column, Record
from krea_data.rows import Row
from psycopg import sql

COUNTER = Record("chaos", (Column("n", "int", "add"), Column("top", "int", "max")))
KEYS = 60
PATIENCE_S = 180.0
_AUDIT = """
create table audit (task text not null, id text not null, nonce text not null);
create function audited() returns trigger language plpgsql as $$
begin
  insert into audit values (tg_argv[0], new.id, new.value->>'nonce');
  return null;
end $$"""


class Load:
    """Threads that go on until `end`, which raises what went wrong in one of them."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.acknowledged: Counter[str] = Counter()
        self.added: list[str] = []
        self.reads = self.scans = 0
        self._lock = threading.Lock()
        self._futures: list[Future[None]] = []

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()

    def end(self, watch: Callable[[], object]) -> None:
        """Stop, and wait until all that was begun is answered; meanwhile `watch` is called again and again."""
        self.stop.set()
        deadline = time.monotonic() + PATIENCE_S
        while not all(future.done() for future in self._futures):
            assert time.monotonic() < deadline, f"writes are not answered for {PATIENCE_S} s"
            watch()
            time.sleep(0.05)
        self.look_after()

    def summary(self) -> str:
        """What was done."""
        sums = self.acknowledged.total(), len(self.added), self.reads, self.scans
        return "counted {}, {} rows added, {} reads, {} scans".format(*sums)

    def look_after(self) -> None:
        """Raise what ended a thread too early."""
        for future in self._futures:
            if future.done():
                future.result()

    def produce(self, address: str, seed: int, *, ack: str = "committed") -> None:
        """Count up keys through a funnel; only what was acknowledged is written down."""
        ready = threading.Event()
        self._go(lambda: self._produce(address, seed, ack, ready))
        if not ready.wait(60):
            self.look_after()
            raise TimeoutError(f"{address} has not answered for 60 s")

    def feed(self, krablet: Krablet, prefix: str, *, rows: int = 5, pause_s: float = 0.03) -> None:
        """Add rows, a few at a time."""
        self._go(lambda: self._feed(krablet, prefix, rows, pause_s))

    def read(self, address: str, seed: int) -> None:
        """Ask a reader for rows that were acknowledged before: they must be there, in order and once."""
        self._go(lambda: self._read(address, seed))

    def _go(self, work: Callable[[], None]) -> None:
        future: Future[None] = Future()
        self._futures.append(future)
        threading.Thread(target=_told, args=(work, future), daemon=True).start()

    def _produce(self, address: str, seed: int, ack: str, ready: threading.Event) -> None:
        draw = random.Random(seed)
        with FunnelClient(address, ack=ack, patience_s=PATIENCE_S, batch_rows=40, requests=3) as funnel:
            counter = funnel.target(f"record:{COUNTER.name}")
            ready.set()
            while not self.stop.is_set():
                wanted = [(f"k{draw.randrange(KEYS)}", draw.randrange(1, 4)) for _ in range(draw.randrange(1, 80))]
                acks = [counter.write(key, {"n": n, "top": n}) for key, n in wanted]
                for (key, n), each in zip(wanted, acks, strict=True):
                    each.result(PATIENCE_S)
                    with self._lock:
                        self.acknowledged[key] += n
                time.sleep(draw.uniform(0.0, 0.02))

    def _feed(self, krablet: Krablet, prefix: str, rows: int, pause_s: float) -> None:
        number = 0
        while not self.stop.is_set():
            new = [Row(id=f"{prefix}/{n:06d}", blob="0" * 64, meta={"n": n}) for n in range(number, number + rows)]
            krablet.add(new)
            self.added += [row.id for row in new]
            number += rows
            time.sleep(pause_s)

    def _read(self, address: str, seed: int) -> None:
        draw = random.Random(seed)
        with RemoteTable(address, patience_s=PATIENCE_S) as table:
            while not self.stop.is_set():
                known = list(self.added)
                if not known:
                    time.sleep(0.01)
                elif draw.random() < 0.1:
                    found = [row.id for row in table.scan()]
                    assert found == sorted(set(found)), "a scan gives every row once, in order"
                    lacking = set(known) - set(found)
                    assert not lacking, f"a scan lacks {len(lacking)} of {len(known)} rows, such as {min(lacking)}"
                    self.scans += 1
                else:
                    wanted = draw.choice(known)
                    row = table.get(wanted)
                    assert row is not None, f"{wanted} was acknowledged and is not there"
                    assert row.id == wanted
                    self.reads += 1


def _told(work: Callable[[], None], future: "Future[None]") -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - whoever looks at the future is told
        future.set_exception(error)
    else:
        future.set_result(None)


def watch_results(dsns: Sequence[str], tasks: Sequence[str]) -> None:
    """Have PostgreSQL itself note every answer that is stored or replaced, with its signature."""
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(_AUDIT)
            for task in tasks:
                connection.execute(
                    sql.SQL(
                        "create trigger audit after insert or update on {} for each row execute function audited({})"
                    ).format(sql.Identifier(f"result_{task}"), sql.Literal(task))
                )


def answers_given(dsns: Sequence[str], task: str) -> Counter[str]:
    """How many different answers were ever stored for each row; a moved answer stays the same one."""
    given: set[tuple[str, str]] = set()
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            given.update(connection.execute("select id, nonce from audit where task = %s", (task,)).fetchall())
    return Counter(row_id for row_id, _ in given)


def counters(dsns: Sequence[str]) -> dict[str, int]:
    """The counters as they are stored."""
    found: Counter[str] = Counter()
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute("select id, n from record_chaos where slot not in (select slot from away)")
            for key, n in rows.fetchall():
                assert key not in found, f"{key} lies on two shards"
                found[key] = n
    return dict(found)
