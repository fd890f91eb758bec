"""A small fleet: racks of eight nodes with eight GPUs each."""

from collections.abc import Callable
from typing import Any

import pytest
from krea_infra.nodes import Job, Node


@pytest.fixture(scope="session")
def fleet() -> Callable[..., list[Node]]:
    def build(count: int, *, racks: int = 2, **fields: Any) -> list[Node]:
        values: dict[str, Any] = {"gpus": 8} | fields
        return [
            Node(
                name=f"node-{index:04d}",
                version=str(index + 1),
                labels={"rack": f"rack-{index % racks}", "pool": "h100"},
                **values,
            )
            for index in range(count)
        ]

    return build


@pytest.fixture(scope="session")
def job() -> Callable[..., Job]:
    def build(nodes: int, *, run: str = "pretrain", **fields: Any) -> Job:
        values: dict[str, Any] = {"owner": f"owner-of-{run}", "image": "train:1", "command": ("train",)} | fields
        return Job(run=run, nodes=nodes, **values)

    return build
