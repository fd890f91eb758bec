"""The main job, stage by stage: real pictures in, a model that draws out. Read this file first.

fetch -> curate -> autoencoder -> encode -> pretrain at two resolutions -> sft -> judge -> report

Each stage leaves its facts in the run's folder when it is finished, so the same command goes on where it stopped.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from krea_data import demo
from krea_data.demo import withheld_concept, withheld_pair
from krea_data.loader import Batches
from krea_data.shards import index
from krea_data.tasks.caption import medium
from krea_model import bundle
from krea_model.textcache import TextCache
from torch import Tensor

from krea_launcher import corpus, draw, encode, ranking, train
from krea_launcher.presets import Preset, Stage
from krea_launcher.progress import Progress
from krea_launcher.report import page
from krea_launcher.run import Run

__all__ = ["Quickstart"]

SHOWN = ("red apple", "green apple", "rocket", "tiger face", "sunflower", "pizza", "house", "guitar", "owl", "cactus")


class Quickstart:
    """One run. Every method is a stage; `__call__` does those that are not finished."""

    def __init__(self, run: Run, preset: Preset, seed: int, progress: Progress, cache: Path | None = None) -> None:
        self.run, self.preset, self.seed, self.progress, self.cache = run, preset, seed, progress, cache

    def __call__(self) -> Path:
        """Do what is not done; returns the report."""
        names = ["fetch", "curate", "autoencoder", "encode", *(stage.name for stage in self.preset.stages), "judge"]
        works = [self.fetch, self.curate, self.autoencoder, self.encode]
        works += [lambda s=stage, b=before: self.train(s, b) for before, stage in self.pairs()]
        for name, work in zip(names, [*works, self.judge], strict=True):
            with self.progress.stage(name):
                self.run.stage(name, work)
        self.bundle()
        return self.report()

    def pairs(self) -> list[tuple[Stage | None, Stage]]:
        """Every training stage with the one before it."""
        return list(zip([None, *self.preset.stages], self.preset.stages, strict=False))

    def fact(self, stage: str) -> dict[str, Any]:
        """What a stage that must be finished has found out."""
        found = self.run.facts(stage)
        if found is None:
            raise ValueError(f"the stage {stage!r} of {self.run.folder} is not finished; run the quickstart again")
        return found

    def fetch(self) -> Mapping[str, Any]:
        """Download and draw the demo corpus."""
        return corpus.fetched(self.progress.tick, self.cache)

    def curate(self) -> Mapping[str, Any]:
        """Take rows in, run the tasks over the krablet, export shards."""
        p, source = self.preset, Path(self.fact("fetch")["folder"])
        return corpus.curated(source, self.run.folder, p.concepts, p.rows, self.seed, self.progress.tick)

    def autoencoder(self) -> Mapping[str, Any]:
        """Train the autoencoder on everything that was kept."""
        return encode.autoencoder(
            self.shards, self.run.path("autoencoder", "x").parent, self.preset, self.seed, self.on_step("autoencoder")
        )

    def encode(self) -> Mapping[str, Any]:
        """Encode all captions and prompts."""
        fitted = [text for one in self.records if self.keep(one) for text in one["captions"].values()]
        wanted = ["", *fitted, *self.prompts, *(medium({**p, "label": p["concept"]}) for p in self.questions)]
        tell = lambda done, total: self.progress.tick("encode captions", done, total)  # noqa: E731
        folder = self.run.path("text", "x").parent
        return encode.encode_text(wanted, fitted, folder, self.preset.config.txtdim, tell)

    def train(self, stage: Stage, before: Stage | None) -> Mapping[str, Any]:
        """Train one stage and draw its sheet."""
        inputs = train.Inputs(
            folder=self.run.folder,
            shards=self.shards,
            keep=self.keep,
            latents=lambda side: encode.encode_images(self.shards, self.coder, side, self.keep),
            text=self.text,
            autoencoder=self.coder,
        )
        facts = train.train(inputs, self.preset, stage, before, self.seed, self.on_step(stage.name))
        self.sheet(stage)
        return facts

    def sheet(self, stage: Stage) -> None:
        """Draw the same prompts from the same noise after a stage."""
        seeds = range(4)
        pairs = [(prompt, seed) for prompt in self.prompts for seed in seeds]
        images = self.samples(stage, pairs)
        rows = [(prompt, list(images[i * 4 : i * 4 + 4])) for i, prompt in enumerate(self.prompts)]
        note = f"{stage.name}: first column the corpus's own picture, then seeds 0 to 3"
        draw.sheet(rows, self.references(self.prompts), note=note).save(self.run.path("sheets", f"{stage.name}.png"))

    def samples(self, stage: Stage, pairs: Sequence[tuple[str, int]]) -> Tensor:
        """Pictures of (prompt, seed) pairs by the averaged weights of a stage."""
        model = train.load_model(self.preset, self.run.folder / stage.name / "average.safetensors", 0).eval()
        return draw.draw(
            model,
            self.text,
            self.coder,
            [prompt for prompt, _ in pairs],
            [seed for _, seed in pairs],
            side_px=stage.side_px,
            steps=self.preset.sample_steps,
            guidance=self.preset.guidance,
        )

    def judge(self) -> Mapping[str, Any]:
        """Rank samples of trained and of withheld pairs among all concepts."""
        return ranking.judged(self)

    def bundle(self) -> Path:
        """Put the last stage's averaged weights into a folder that `krea-sample --model` draws from."""
        last = self.preset.stages[-1]
        about = {
            "data": "demo corpus: Fluent emoji (MIT), Noto emoji (Apache-2.0), Twemoji (CC BY 4.0)",
            "recipe": f"quickstart, preset {self.preset.name}, seed {self.seed}",
            "preset": asdict(self.preset),
            "commit": commit(),
            "concepts": list(self.vocabulary),
        }
        return bundle.save(
            self.run.folder / "model",
            model=train.load_model(self.preset, self.run.folder / last.name / "average.safetensors", 0),
            reduction=encode.load_text(self.run.folder / "text")[1],
            autoencoder=self.coder,
            defaults=bundle.Defaults(
                side_px=last.side_px, steps=self.preset.sample_steps, guidance=self.preset.guidance
            ),
            about=about,
        )

    def report(self) -> Path:
        """Write the report."""
        return page.write_report(self)

    def on_step(self, name: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """A log that moves the bar of a stage."""
        return lambda step, total, metrics: self.progress.tick(f"{name}, loss {metrics['loss']:.3f}", step, total)

    @property
    def shards(self) -> Path:
        """The export of the curation."""
        return self.run.folder / "shards"

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The index of the export."""
        return index(self.shards)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The concepts of this run."""
        return demo.core(demo.rows(Path(self.fact("fetch")["folder"])), self.preset.concepts)

    @cached_property
    def keep(self) -> Callable[[Mapping[str, Any]], bool]:
        """Whether a record is trained on."""
        return encode.trained_on(self.vocabulary)

    @cached_property
    def coder(self) -> Any:
        """The trained autoencoder."""
        return encode.load_autoencoder(self.run.folder / "autoencoder", self.preset)

    @cached_property
    def text(self) -> TextCache:
        """The encoded captions."""
        return encode.load_text(self.run.folder / "text")[0]

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """What is drawn and ranked at the end: concept, style, row id, and whether the pair was withheld."""
        chosen = set(self.vocabulary)
        found = []
        for record in self.records:
            concept, style = record["meta"]["concept"], record["meta"]["style"]
            if concept in chosen and not withheld_concept(concept):
                held = withheld_pair(concept, style)
                found.append({"concept": concept, "style": style, "id": record["id"], "withheld": held})
        found.sort(key=lambda one: one["id"])
        seen = [one for one in found if not one["withheld"]]
        step = max(1, len(seen) // self.preset.evals)
        return [one for one in found if one["withheld"]] + seen[::step][: self.preset.evals]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts of the sheets: well-known concepts in turn through the styles, then some withheld ones."""
        chosen = set(self.vocabulary)
        shown = [c for c in SHOWN if c in chosen] or list(self.vocabulary[:6])
        prompts = [f"{concept}, {demo.STYLES[i % len(demo.STYLES)]}" for i, concept in enumerate(shown)]
        pairs = [f"{c}, {s}" for c in self.vocabulary for s in demo.STYLES if withheld_pair(c, s)]
        whole = [f"{c}, {demo.STYLES[1]}" for c in self.vocabulary if withheld_concept(c)]
        return list(dict.fromkeys([*prompts, *pairs[:4], *whole[:2]]))

    def references(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The corpus's own pictures `3 H W` of prompts, where it has them."""
        names = {medium(one["meta"]): one["id"] for one in self.records}
        wanted = {names[prompt]: prompt for prompt in prompts if prompt in names}
        if not wanted:
            return {}
        batch = Batches(self.shards, len(wanted), keep=lambda one: one["id"] in wanted).at(0)
        return {wanted[one]: image for one, image in zip(batch.ids, batch.images, strict=True)}


def commit() -> str:
    """The commit of the working tree, or "unknown"."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"
