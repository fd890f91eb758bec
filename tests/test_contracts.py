"""Every implementation fits the Protocol of its caller, though neither imports the other.

The lists below are the proof for the type checker. The tests repeat it at run time, where modules and callables hide
their signature from a type checker, and then run packages together that do not depend on each other.
"""

import ast
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import krea_data.loader
import pytest
import torch
from krea_data.blobs import FolderBlobs
from krea_data.contract_queue import TypedFake
from krea_data.interfaces import Blobs, Controls, Table, Task, TypedTask, WorkTable
from krea_data.interfaces import Queues as WorkQueues
from krea_data.krablet.readers.given import NamedTask
from krea_data.krablet.readers.remote import RemoteTable
from krea_data.krablet.table import Krablet
from krea_data.loader import ImageBatch
from krea_data.memory import MemoryTable
from krea_data.tasks import Caption, Complexity, Decode, Flat, Hash, Licence
from krea_data.testing import CrashingTask, FakeTask, MemoryBlobs
from krea_expander.http import Endpoint
from krea_expander.interfaces import LanguageModel
from krea_expander.local import LocalModel
from krea_expander.testing import ScriptedModel
from krea_infra.interfaces import Cluster, Provider, Queues
from krea_infra.kubernetes import KubernetesCluster, KubernetesQueues
from krea_infra.processes import Processes
from krea_infra.telemetry import json_lines, lines, prometheus, tee
from krea_infra.testing import MemoryCluster, MemoryProvider, MemoryQueues
from krea_model.autoencoder import QwenImageAutoencoder
from krea_model.flux_autoencoder import Flux1Autoencoder, Flux2Autoencoder
from krea_model.interfaces import Autoencoder, TextEncoder, Velocity
from krea_model.minilm import MiniLM
from krea_model.mmdit import MMDiT
from krea_model.smallae import SmallAutoencoder
from krea_model.t5 import T5Encoder
from krea_model.testing import FakeAutoencoder, FakeTextEncoder
from krea_model.text import Qwen3VLEncoder
from krea_model.textcache import CachedEncoder, TextCache
from krea_rl.interfaces import Reward
from krea_rl.preference import PreferenceObjective
from krea_rl.rewards.text import TextReward
from krea_rl.testing import Brightness, LinearHead, NearPoint, PlainText, Ring
from krea_style.encoder import ImageStyleEncoder
from krea_style.interfaces import StyleEncoder
from krea_style.objective import StyleObjective
from krea_style.styled import StyledMMDiT
from krea_style.testing import FakeStyleEncoder
from krea_train.interfaces import Batch, Batches, Log, Objective
from krea_train.objectives.align import Alignment
from krea_train.objectives.distill import Distillation
from krea_train.objectives.flow import FlowMatching
from krea_train.testing import Recorder, SquareBatch, Squares, WordStates

ROOT = Path(__file__).resolve().parents[1]

velocities: list[type[Velocity]] = [MMDiT, StyledMMDiT, Ring, LinearHead]
text_encoders: list[type[TextEncoder]] = [
    *(Qwen3VLEncoder, T5Encoder, MiniLM, TextCache, CachedEncoder),
    *(FakeTextEncoder, WordStates, PlainText),
]
autoencoders: list[type[Autoencoder]] = [
    *(QwenImageAutoencoder, Flux1Autoencoder, Flux2Autoencoder),
    *(SmallAutoencoder, FakeAutoencoder),
]
tables: list[type[Table]] = [MemoryTable, Krablet]
work_queues: list[type[WorkQueues]] = [MemoryTable, Krablet]
work_tables: list[type[WorkTable]] = [MemoryTable, Krablet, RemoteTable]
controls: list[type[Controls]] = [MemoryTable, Krablet, RemoteTable]
typed_tasks: list[type[TypedTask]] = [TypedFake, NamedTask]
tasks: list[type[Task]] = [Decode, Flat, Hash, Complexity, Licence, Caption, FakeTask, CrashingTask]
blobs: list[type[Blobs]] = [FolderBlobs, MemoryBlobs]
batch_types: list[type[Batch]] = [ImageBatch, SquareBatch]
batches: list[type[Batches]] = [krea_data.loader.Batches, Squares]
objectives: list[type[Objective]] = [FlowMatching, Alignment, Distillation, PreferenceObjective, StyleObjective]
rewards: list[type[Reward]] = [TextReward, NearPoint, Brightness]
style_encoders: list[type[StyleEncoder]] = [ImageStyleEncoder, FakeStyleEncoder]
language_models: list[type[LanguageModel]] = [LocalModel, Endpoint, ScriptedModel]
clusters: list[type[Cluster]] = [KubernetesCluster, MemoryCluster]
queues: list[type[Queues]] = [KubernetesQueues, MemoryQueues]
providers: list[type[Provider]] = [Processes, MemoryProvider]


def logs(folder: Path) -> list[Log]:
    """Sinks of krea-infra beside the fake of krea-train."""
    sinks = [lines(io.StringIO()), json_lines(folder / "log.jsonl"), prometheus(folder / "log.prom")]
    return [Recorder(), *sinks, tee(*sinks)]


CONTRACTS: list[tuple[Any, Sequence[Any]]] = [
    (Velocity, velocities),
    (TextEncoder, text_encoders),
    (Autoencoder, autoencoders),
    (Table, tables),
    (WorkQueues, work_queues),
    (WorkTable, work_tables),
    (Controls, controls),
    (TypedTask, typed_tasks),
    (Task, tasks),
    (Blobs, blobs),
    (Batch, batch_types),
    (Batches, batches),
    (Objective, objectives),
    (Reward, rewards),
    (StyleEncoder, style_encoders),
    (LanguageModel, language_models),
    (Cluster, clusters),
    (Queues, queues),
    (Provider, providers),
]
PAIRS = [(protocol, one) for protocol, implementations in CONTRACTS for one in implementations]


def asked(protocol: type) -> dict[str, Any]:
    """The members that a Protocol asks for, those of its bases included."""
    members = {name: member for base in reversed(protocol.__mro__) for name, member in vars(base).items()}
    return {
        name: member for name, member in members.items() if name == "__call__" or name[0] != "_" or name == "__iter__"
    }


def misfits(protocol: type, implementation: type) -> list[str]:
    """Members that are missing, and methods that cannot be called as the Protocol says, by position or by name."""
    found = []
    for name, member in asked(protocol).items():
        own = "forward" if name == "__call__" and issubclass(implementation, torch.nn.Module) else name
        fields = getattr(implementation, "__dataclass_fields__", {})
        if isinstance(member, property):
            if own not in fields and not hasattr(implementation, own):
                found.append(f"{name} is missing")
        elif not callable(getattr(implementation, own, None)):
            found.append(f"{name}() is missing")
        elif not takes(getattr(implementation, own), list(inspect.signature(member).parameters.values())):
            found.append(f"{name}{inspect.signature(getattr(implementation, own))} is not {inspect.signature(member)}")
    return found


def takes(method: Any, parameters: list[inspect.Parameter]) -> bool:
    """Whether the method accepts these parameters under their names and in their order, and needs no other."""
    own = list(inspect.signature(method).parameters.values())
    asked_for = {p.name for p in parameters}
    places = [p.name for p in own if p.kind is not p.KEYWORD_ONLY]
    wanted = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    needless = all(p.name in asked_for or p.default is not p.empty for p in own)
    return places[: len(wanted)] == wanted and asked_for <= {p.name for p in own} and needless


@pytest.mark.parametrize(("protocol", "one"), PAIRS, ids=[f"{p.__name__}-{one.__name__}" for p, one in PAIRS])
def test_implementation_fits(protocol: type, one: type) -> None:
    assert misfits(protocol, one) == []


def test_a_misfit_is_found() -> None:
    class Other:
        def encode(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures

    assert misfits(Autoencoder, Other) == [
        "compression is missing",
        "channels is missing",
        "encode(self, pictures: torch.Tensor) -> torch.Tensor is not (self, images: torch.Tensor) -> torch.Tensor",
        "decode() is missing",
    ]


def test_every_protocol_is_here_with_two_implementations() -> None:
    declared = {
        (path.parent.name, node.name)
        for path in ROOT.glob("packages/*/src/*/interfaces.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Protocol" for b in node.bases)
    }
    here = {(protocol.__module__.split(".")[0], protocol.__name__): len(found) for protocol, found in CONTRACTS}
    here["krea_train", "Log"] = 5
    assert declared == here.keys()
    assert min(here.values()) >= 2


def test_every_log_takes_a_step(tmp_path: Path) -> None:
    for log in logs(tmp_path):
        log(3, {"loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text().count('"loss": 0.5') == 2
