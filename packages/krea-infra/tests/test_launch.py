import importlib
import threading
from dataclasses import replace

import pytest
from krea_infra.interfaces import ClusterError, ConflictError, ShortageError
from krea_infra.launch import launch, orphans, release, sweep
from krea_infra.nodes import OWNER, RUN, Fault, Job, Taint, is_held
from krea_infra.select import Request
from krea_infra.testing import Interrupted, MemoryCluster

FOREIGN = Taint(key="maintenance", value="soon", effect="PreferNoSchedule")


class Killed(BaseException):
    """As SIGKILL: no handler of the code under test runs."""


def no_pause(tries: int) -> None:
    """Tests do not wait."""


def state(cluster: MemoryCluster) -> dict:
    """Everything about the nodes but their versions."""
    return {node.name: replace(node, version="") for node in cluster.nodes()}


def marked(cluster: MemoryCluster, job: Job) -> list[str]:
    return [node.name for node in cluster.nodes() if is_held(node, job)]


@pytest.mark.parametrize("protect", [False, True])
def test_launch_and_release_leave_the_nodes_as_they_were(fleet, job, protect: bool) -> None:
    nodes = fleet(8, taints=(FOREIGN,))
    cluster = MemoryCluster(nodes)
    before = state(cluster)
    wanted = job(3, protect=protect)
    plan = launch(cluster, Request(job=wanted, spares=1), pause=no_pause)
    mine = {*plan.nodes, *plan.spares}
    assert len(mine) == 4
    assert set(marked(cluster, wanted)) == mine
    for node in cluster.nodes():
        assert FOREIGN in node.taints
        assert (node.labels.get(RUN) == "pretrain") == (node.name in mine)
        assert (Taint(key=OWNER, value=wanted.owner) in node.taints) == (protect and node.name in mine)
    assert cluster.jobs() == [wanted]
    assert set(release(cluster, wanted, pause=no_pause)) == mine
    assert state(cluster) == before
    assert cluster.jobs() == []
    count = len(cluster.writes)
    assert release(cluster, wanted, pause=no_pause) == ()
    assert len(cluster.writes) == count


def test_a_second_launch_changes_nothing(fleet, job) -> None:
    cluster = MemoryCluster(fleet(8))
    first = launch(cluster, Request(job=job(3), spares=1), pause=no_pause)
    cluster.change(first.nodes[0], faults=(Fault(kind="ib", severity="fatal"),), used=8)
    count = len(cluster.writes)
    again = launch(cluster, Request(job=job(3), spares=1), pause=no_pause)
    assert {*again.nodes, *again.spares} == {*first.nodes, *first.spares}
    assert len(cluster.writes) == count


def test_marks_of_others_are_left_alone(fleet, job) -> None:
    nodes = fleet(6)
    nodes[0] = replace(nodes[0], labels={**nodes[0].labels, RUN: "pretrain", OWNER: "another-owner"})
    cluster = MemoryCluster(nodes)
    launch(cluster, Request(job=job(3)), pause=no_pause)
    release(cluster, job(3), pause=no_pause)
    assert [n for n in cluster.nodes() if n.labels.get(OWNER) == "another-owner"] == [nodes[0]]


def test_a_run_name_of_somebody_else_is_refused_before_any_mark(fleet, job) -> None:
    cluster = MemoryCluster(fleet(6))
    launch(cluster, Request(job=job(2)), pause=no_pause)
    count = len(cluster.writes)
    with pytest.raises(ConflictError, match="belongs to somebody else"):
        launch(cluster, Request(job=job(2, owner="intruder")), pause=no_pause)
    assert len(cluster.writes) == count
    assert cluster.owners() == {"owner-of-pretrain"}


def test_a_shortage_leaves_nothing_and_explains(fleet, job) -> None:
    cluster = MemoryCluster(fleet(4, cordoned=True))
    before = state(cluster)
    with pytest.raises(ShortageError, match=r"3 nodes short.*\n.*cordoned"):
        launch(cluster, Request(job=job(3)), pause=no_pause)
    assert state(cluster) == before
    assert cluster.jobs() == []


def test_a_node_that_changes_or_vanishes_is_replaced(fleet, job) -> None:
    class Busy(MemoryCluster):
        """Somebody claims the first node we want, and the second one vanishes."""

        calls = 0

        def label(self, node, labels, annotations=None):
            self.calls += 1
            if self.calls == 1:
                self.change(node.name, labels={OWNER: "faster"})
            if self.calls == 2:
                self.remove(node.name)
            return super().label(node, labels, annotations)

    cluster = Busy(fleet(8))
    plan = launch(cluster, Request(job=job(4)), pause=no_pause)
    assert sorted(marked(cluster, job(4))) == sorted(plan.nodes)
    assert len(plan.nodes) == 4


def test_a_claimed_node_that_falls_ill_before_the_start_is_given_back(fleet, job) -> None:
    cluster = MemoryCluster(fleet(8))
    with pytest.raises(Killed):
        launch(Interrupted(cluster, at=5, after=True, error=Killed()), Request(job=job(4)), pause=no_pause)
    ill = marked(cluster, job(4))[0]
    cluster.change(ill, faults=(Fault(kind="ib", severity="fatal"),))
    plan = launch(cluster, Request(job=job(4)), pause=no_pause)
    assert ill not in plan.nodes
    assert sorted(marked(cluster, job(4))) == sorted(plan.nodes)


def test_release_waits_for_the_last_pod(fleet, job) -> None:
    cluster = MemoryCluster(fleet(4), linger=3)
    launch(cluster, Request(job=job(2)), pause=no_pause)
    waited = []
    release(cluster, job(2), pause=waited.append)
    assert waited == [0, 1, 2]
    assert marked(cluster, job(2)) == []
    stuck = MemoryCluster(fleet(4), linger=10**6)
    launch(stuck, Request(job=job(2)), pause=no_pause)
    with pytest.raises(ClusterError, match="still there after 0 s"):
        release(stuck, job(2), pause=no_pause, timeout_s=0.0)
    assert len(marked(stuck, job(2))) == 2


def points(fleet, job, work) -> int:
    """How many calls the work makes when nothing fails."""
    counter = Interrupted(MemoryCluster(fleet(6, taints=(FOREIGN,))), at=0, after=False, error=Killed())
    work(counter)
    return counter.calls


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [Killed(), ClusterError("the network broke")])
def test_launch_can_be_killed_at_every_call(fleet, job, after: bool, error: BaseException) -> None:
    request = Request(job=job(3, protect=True), spares=1)
    total = points(fleet, job, lambda cluster: launch(cluster, request, pause=no_pause))
    assert total >= 12
    for at in range(1, total + 1):
        for way_out in ("again", "release", "sweep"):
            cluster = MemoryCluster(fleet(6, taints=(FOREIGN,)))
            before = state(cluster)
            with pytest.raises(type(error)):
                launch(Interrupted(cluster, at=at, after=after, error=error), request, pause=no_pause)
            if way_out == "again":
                plan = launch(cluster, request, pause=no_pause)
                assert sorted(marked(cluster, request.job)) == sorted((*plan.nodes, *plan.spares))
                assert len(plan.nodes) == 3
                assert cluster.jobs() == [request.job]
                release(cluster, request.job, pause=no_pause)
            elif way_out == "release":
                release(cluster, request.job, pause=no_pause)
            else:  # the record of the launch is lost as well: only the marks tell
                while not cluster.delete(request.job):
                    pass
                sweep(cluster, cluster.owners)
            assert state(cluster) == before, (at, way_out)
            assert cluster.jobs() == []


@pytest.mark.parametrize("after", [False, True])
def test_release_can_be_killed_at_every_call(fleet, job, after: bool) -> None:
    request = Request(job=job(3, protect=True), spares=1)

    def work(cluster) -> None:
        launch(cluster, request, pause=no_pause)
        release(cluster, request.job, pause=no_pause)

    begin = points(fleet, job, lambda cluster: launch(cluster, request, pause=no_pause))
    for at in range(1, points(fleet, job, work) - begin + 1):
        cluster = MemoryCluster(fleet(6, taints=(FOREIGN,)))
        before = state(cluster)
        launch(cluster, request, pause=no_pause)
        with pytest.raises(Killed):
            release(Interrupted(cluster, at=at, after=after, error=Killed()), request.job, pause=no_pause)
        release(cluster, request.job, pause=no_pause)
        assert state(cluster) == before
        assert cluster.jobs() == []


def test_sweep_frees_marks_without_a_job_and_no_others(fleet, job) -> None:
    cluster = MemoryCluster(fleet(8))
    launch(cluster, Request(job=job(2)), pause=no_pause)
    lost = job(3, run="lost", protect=True)
    launch(cluster, Request(job=lost), pause=no_pause)
    while not cluster.delete(lost):
        pass
    assert list(orphans(cluster.nodes(), cluster.owners())) == [lost.owner]
    assert len(sweep(cluster, cluster.owners)) == 3
    assert marked(cluster, lost) == []
    assert len(marked(cluster, job(2))) == 2
    assert sweep(cluster, cluster.owners) == ()


def test_sweep_leaves_a_node_that_changed_while_it_looked(fleet, job) -> None:
    nodes = fleet(2)
    cluster = MemoryCluster([replace(nodes[0], labels={OWNER: "gone"}), nodes[1]])

    def living() -> list[str]:
        cluster.change(nodes[0].name, labels={OWNER: "newcomer"})
        return []

    assert sweep(cluster, living) == ()
    assert cluster.nodes()[0].labels == {OWNER: "newcomer"}


def test_sweep_spares_a_launch_that_begins_while_it_looks(fleet, job) -> None:
    class Late(Interrupted):
        def nodes(self):
            launch(cluster, Request(job=job(1, run="early")), pause=no_pause)
            return super().nodes()

    def living() -> set[str]:
        launch(cluster, Request(job=job(1, run="late")), pause=no_pause)
        return cluster.owners()

    cluster = MemoryCluster(fleet(2))
    assert sweep(Late(cluster, at=0, after=False, error=Killed()), living) == ()
    assert len(marked(cluster, job(1, run="early"))) == len(marked(cluster, job(1, run="late"))) == 1


def race(cluster: MemoryCluster, jobs: list[Job]) -> list[Job]:
    """Launch all at once; returns those that were told that they have their nodes."""
    barrier, done = threading.Barrier(len(jobs)), []

    class Together:
        """All launches see the same first snapshot of the nodes."""

        def __init__(self) -> None:
            self.first = True

        def __getattr__(self, name: str):
            return getattr(cluster, name)

        def nodes(self):
            nodes = cluster.nodes()
            if self.first:
                self.first = False
                barrier.wait(timeout=60)
            return nodes

    def start(one: Job) -> None:
        try:
            launch(Together(), Request(job=one), pause=no_pause, rounds=200)  # type: ignore[arg-type]
            done.append(one)
        except ShortageError:
            pass

    threads = [threading.Thread(target=start, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def lost_claims(cluster: MemoryCluster, winners: list[Job]) -> int:
    """Nodes short over all launches that were told they had theirs."""
    return sum(one.nodes - len(marked(cluster, one)) for one in winners)


@pytest.fixture
def same_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run prefers the same nodes, which is the worst case."""
    module = importlib.import_module("krea_infra.select")
    monkeypatch.setattr(module, "_hash", lambda request, name: name.encode())


@pytest.mark.usefixtures("same_preference")
def test_concurrent_launches_never_share_a_node(fleet, job) -> None:
    for _ in range(20):
        cluster = MemoryCluster(fleet(40))
        winners = race(cluster, [job(5, run=f"run-{i}") for i in range(8)])
        assert len(winners) == 8
        assert lost_claims(cluster, winners) == 0
        cluster = MemoryCluster(fleet(20))
        winners = race(cluster, [job(5, run=f"run-{i}") for i in range(8)])
        assert lost_claims(cluster, winners) == 0
        taken = [n for n in cluster.nodes() if OWNER in n.labels]
        assert len(taken) == 5 * len(winners)


@pytest.mark.usefixtures("same_preference")
@pytest.mark.parametrize(("locking", "lost"), [(True, 0), (False, 5)])
def test_only_the_version_check_saves_claims_from_an_old_snapshot(fleet, job, locking: bool, lost: int) -> None:
    """Without optimistic locking the second launch takes all nodes of the first, and nobody is told."""
    cluster = MemoryCluster(fleet(40), locking=locking)
    old = [cluster.nodes()]

    class Late(Interrupted):
        def nodes(self):
            return old.pop() if old else cluster.nodes()

    first, second = job(5, run="first"), job(5, run="second")
    launch(cluster, Request(job=first), pause=no_pause)
    launch(Late(cluster, at=0, after=False, error=Killed()), Request(job=second), pause=no_pause)
    assert lost_claims(cluster, [first, second]) == lost
