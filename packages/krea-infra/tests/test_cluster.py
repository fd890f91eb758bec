"""One test class for both clusters: in memory, and the real client against the strict API server."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import kubernetes
import pytest
from krea_infra.apiserver import ApiServer, node_object
from krea_infra.interfaces import Cluster, ConflictError, MissingError, Queues
from krea_infra.kubernetes import KubernetesCluster, KubernetesQueues
from krea_infra.launch import launch, release, sweep
from krea_infra.nodes import FAULTS, OWNER, Fault, Job, Node, Taint, faults_to_text
from krea_infra.quota import Policy, Share, follow
from krea_infra.select import Request
from krea_infra.testing import Interrupted, MemoryCluster, MemoryQueues, queue_object

TAINT = Taint(key="maintenance", value="soon", effect="NoExecute")


class World:
    """A cluster and the means to play everybody else."""

    def __init__(self, cluster: Any, remove: Callable[[str], None], reap: Callable[[], None]) -> None:
        self.cluster, self.remove, self.reap = cluster, remove, reap

    def release(self, job: Job) -> tuple[str, ...]:
        return release(self.cluster, job, pause=lambda tries: self.reap())


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def client(server: ApiServer) -> Iterator[kubernetes.client.ApiClient]:
    configuration = kubernetes.client.Configuration(host=server.url)
    with kubernetes.client.ApiClient(configuration) as client:
        yield client


@pytest.fixture(params=["memory", "kubernetes"])
def world(request: pytest.FixtureRequest, fleet) -> World:
    nodes = fleet(6)
    if request.param == "memory":
        cluster = MemoryCluster(nodes)
        return World(cluster, cluster.remove, lambda: None)
    server: ApiServer = request.getfixturevalue("server")
    for node in nodes:
        server.put("nodes", node_object(node))

    def remove(name: str) -> None:
        item = server.get("nodes", name)
        assert item is not None
        item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        server.put("nodes", item)
        server.reap()

    return World(KubernetesCluster(request.getfixturevalue("client")), remove, server.reap)


class TestCluster:
    def test_labels_merge_and_the_version_moves(self, world: World) -> None:
        cluster: Cluster = world.cluster
        node = cluster.nodes()[0]
        written = cluster.label(node, {"a": "1", "rack": None})
        assert written.labels == {"pool": "h100", "a": "1"}
        assert written.version != node.version
        assert cluster.nodes()[0] == written
        assert "a" not in cluster.label(written, {"a": None}).labels

    def test_taints_are_replaced_whole(self, world: World) -> None:
        cluster: Cluster = world.cluster
        node = cluster.taint(cluster.nodes()[0], [TAINT, Taint(key="b")])
        assert node.taints == (TAINT, Taint(key="b"))
        assert cluster.taint(node, [Taint(key="b")]).taints == (Taint(key="b"),)
        assert cluster.taint(cluster.nodes()[0], []).taints == ()

    def test_an_old_version_changes_nothing(self, world: World) -> None:
        cluster: Cluster = world.cluster
        node = cluster.nodes()[0]
        written = cluster.label(node, {"a": "1"})
        with pytest.raises(ConflictError):
            cluster.label(node, {"a": "2"})
        with pytest.raises(ConflictError):
            cluster.taint(node, [TAINT])
        assert cluster.nodes()[0] == written

    def test_a_node_that_is_gone_is_missing(self, world: World) -> None:
        cluster: Cluster = world.cluster
        node = cluster.nodes()[0]
        world.remove(node.name)
        with pytest.raises(MissingError):
            cluster.label(node, {"a": "1"})
        assert len(cluster.nodes()) == 5

    def test_faults_are_written_and_read(self, world: World) -> None:
        cluster: Cluster = world.cluster
        found = (Fault(kind="ib", severity="fatal", gpus=(), reason="lost its link"),)
        node = cluster.label(cluster.nodes()[0], {}, {FAULTS: faults_to_text(found)})
        assert node.faults == found
        assert cluster.label(node, {}, {FAULTS: None}).faults == ()

    def test_jobs_only_go_forward(self, world: World, job) -> None:
        cluster: Cluster = world.cluster
        held, free = job(2, held=True), job(2)
        assert cluster.submit(held) == held
        assert cluster.submit(held) == held
        assert cluster.submit(free) == free
        assert cluster.submit(held) == free
        with pytest.raises(ConflictError, match="belongs to somebody else"):
            cluster.submit(job(2, owner="another"))
        assert cluster.delete(job(2, owner="another"))
        assert world.cluster.owners() == {free.owner}
        assert not cluster.delete(free)
        with pytest.raises(ConflictError, match="is being deleted"):
            cluster.submit(free)
        world.reap()
        assert cluster.delete(free)
        assert cluster.delete(free)
        assert world.cluster.owners() == set()

    def test_launch_and_release(self, world: World, job) -> None:
        before = {node.name: replace(node, version="") for node in world.cluster.nodes()}
        request = Request(job=job(3, protect=True), spares=1, topology=("rack",))
        plan = launch(world.cluster, request)
        held = [node for node in world.cluster.nodes() if node.labels.get(OWNER) == request.job.owner]
        assert sorted(node.name for node in held) == sorted((*plan.nodes, *plan.spares))
        assert all(Taint(key=OWNER, value=request.job.owner) in node.taints for node in held)
        assert len(world.release(request.job)) == 4
        assert {node.name: replace(node, version="") for node in world.cluster.nodes()} == before

    def test_killed_launches_are_cleaned_up(self, world: World, job) -> None:
        before = {node.name: replace(node, version="") for node in world.cluster.nodes()}
        for at in range(1, 10):
            lost = job(3, owner=f"owner-{at}")
            broken = Interrupted(world.cluster, at=at, after=True, error=KeyboardInterrupt())
            with contextlib.suppress(KeyboardInterrupt):
                launch(broken, Request(job=lost, spares=1))
            assert broken.calls >= min(at, 8)
            while not world.cluster.delete(lost):
                world.reap()
            sweep(world.cluster, world.cluster.owners)
            assert {node.name: replace(node, version="") for node in world.cluster.nodes()} == before


@pytest.fixture(params=["memory", "kubernetes"])
def queues(request: pytest.FixtureRequest) -> Queues:
    objects = [queue_object("training", 0, lendingLimit="8"), queue_object("inference", 24)]
    if request.param == "memory":
        return MemoryQueues(objects)
    server: ApiServer = request.getfixturevalue("server")
    for item in objects:
        server.put("clusterqueues", item)
    return KubernetesQueues(request.getfixturevalue("client"))


class TestQueues:
    def test_an_old_or_absent_version_is_refused(self, queues: Queues) -> None:
        first = queues.queues()[0]
        first["spec"]["stopPolicy"] = "Hold"
        written = queues.replace(first)
        assert written["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        with pytest.raises(ConflictError):
            queues.replace(first)

    def test_quota_follows_the_nodes(self, queues: Queues, fleet: Callable[..., list[Node]]) -> None:
        shares = (Share(queue="training", weight=2), Share(queue="inference"))
        follow(queues, fleet(6), Policy(flavor="h100", shares=shares, max_drop=1.0))
        found = {
            queue["metadata"]["name"]: queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]
            for queue in queues.queues()
        }
        assert found["training"] == {"name": "nvidia.com/gpu", "nominalQuota": "32", "lendingLimit": "8"}
        assert found["inference"] == {"name": "nvidia.com/gpu", "nominalQuota": "16"}
