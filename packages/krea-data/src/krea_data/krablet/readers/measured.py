"""What a reader did, for Prometheus: calls by verb and outcome, their times, and how the pools stand."""

import time
from typing import Any

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError("the metrics of a reader need prometheus-client; install krea-data[serve]") from error

from krea_data.krablet.readers.reads import Reads
from krea_data.krablet.readers.service import ReaderService
from krea_data.krablet.rpc.tokens import Caller

__all__ = ["Counted", "Measured"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Measured:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.stopping = False
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "krablet_reader_calls", "Calls by verb and outcome", ["verb", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "krablet_reader_seconds",
            "Time to answer, or to begin a stream",
            ["verb"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._pool = Gauge(
            "krablet_reader_connections", "Connections and readers in line", ["shard", "state"], registry=self.registry
        )
        self._up = Gauge(
            "krablet_reader_shard_up", "0 if the last try to connect failed", ["shard"], registry=self.registry
        )
        self._scans = Gauge("krablet_reader_scans", "Scans that are running", registry=self.registry)

    async def call(
        self, service: ReaderService, verb: str, args: dict[str, Any], caller: Caller, *, plain: bool = False
    ) -> Any:
        """The service's answer, counted; with `plain`, that of the scan before it becomes a stream."""
        start, outcome = time.perf_counter(), "error"
        try:
            value = await (
                service.reads.scan(**service.checked(verb, args)) if plain else service.call(verb, args, caller)
            )
            outcome = "ok"
            return value
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            self._calls.labels(verb, outcome).inc()
            self._seconds.labels(verb).observe(time.perf_counter() - start)

    def look(self, reads: Reads) -> None:
        """Bring the gauges up to date."""
        self._scans.set(reads.scanning)
        for number, pool in reads.fleet.pools.items():
            state = pool.state
            for name, value in (("open", state.open), ("busy", state.busy), ("waiting", state.waiting)):
                self._pool.labels(str(number), name).set(value)
            self._up.labels(str(number)).set(state.error is None)


class Counted:
    """A service whose calls are counted, for `rpc.serve`."""

    def __init__(self, service: ReaderService, measured: Measured) -> None:
        self.scopes = service.scopes
        self._service, self._measured = service, measured

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        """Do it and count it."""
        return await self._measured.call(self._service, verb, args, caller)
