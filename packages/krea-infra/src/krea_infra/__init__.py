"""Clusters for training and inference: select, launch, watch."""

from krea_infra.counters import Reading, read
from krea_infra.health import faults, judge
from krea_infra.interfaces import (
    Cluster,
    ClusterError,
    ConflictError,
    MissingError,
    Provider,
    Queues,
    RefusedError,
    ShortageError,
    UnreachableError,
)
from krea_infra.launch import launch, release, sweep
from krea_infra.nodes import Fault, Job, Node, Taint
from krea_infra.packerman import DevPod, pack
from krea_infra.quota import Policy, Share, follow
from krea_infra.select import Plan, Request, explain, select
from krea_infra.telemetry import json_lines, lines, prometheus, tee

__all__ = [
    "Cluster",
    "ClusterError",
    "ConflictError",
    "DevPod",
    "Fault",
    "Job",
    "MissingError",
    "Node",
    "Plan",
    "Policy",
    "Provider",
    "Queues",
    "Reading",
    "RefusedError",
    "Request",
    "Share",
    "ShortageError",
    "Taint",
    "UnreachableError",
    "explain",
    "faults",
    "follow",
    "json_lines",
    "judge",
    "launch",
    "lines",
    "pack",
    "prometheus",
    "read",
    "release",
    "select",
    "sweep",
    "tee",
]
