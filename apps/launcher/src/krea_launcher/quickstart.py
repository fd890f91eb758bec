"""The main job, stage by stage: real pictures in, a model that draws out. Read this file first.

fetch -> curate -> autoencoder -> encode -> pretrain at two resolutions -> sft ->
joint space -> preference -> judge -> report

Each stage leaves its facts in the run's folder when it is finished, so the same command goes on where it stopped.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from krea_data.loader import Batches
from krea_data.shards import index
from krea_data.tasks.caption import medium
from krea_model import bundle
from krea_model.mmdit import MMDiT
from krea_model.textcache import TextCache
from torch import Tensor

from krea_launcher import asking, corpus, draw, encode, prefer, ranking, train
from krea_launcher.presets import Preset, Stage
from krea_launcher.progress import Progress
from krea_launcher.report import page
from krea_launcher.run import Run

__all__ = ["Quickstart"]


class Quickstart:
    """One run. Every method is a stage; `__call__` does those that are not finished."""

    def __init__(self, run: Run, preset: Preset, seed: int, progress: Progress, cache: Path | None = None) -> None:
        self.run, self.preset, self.seed, self.progress, self.cache = run, preset, seed, progress, cache

    def __call__(self) -> Path:
        """Do what is not done; returns the report."""
        for name, work in self.stages().items():
            with self.progress.stage(name):
                self.run.stage(name, work)
        self.bundle()
        return self.report()

    def stages(self) -> dict[str, Callable[[], Mapping[str, Any]]]:
        """What is done, in this order."""
        flow = self.preset.stages
        training = zip([None, *flow], flow, strict=False)
        return {
            "fetch": self.fetch,
            "curate": self.curate,
            "autoencoder": self.autoencoder,
            "encode": self.encode,
            **{stage.name: lambda s=stage, b=before: self.train(s, b) for before, stage in training},
            "space": self.space,
            "pairs": self.pairs,
            self.preset.preference.name: self.preference,
            "judge": self.judge,
        }

    @property
    def drawn(self) -> list[str]:
        """The stages after which a sheet is drawn."""
        return [*(stage.name for stage in self.preset.stages), self.preset.preference.name]

    def fact(self, stage: str) -> dict[str, Any]:
        """What a stage that must be finished has found out."""
        found = self.run.facts(stage)
        if found is None:
            raise ValueError(f"the stage {stage!r} of {self.run.folder} is not finished; run the quickstart again")
        return found

    def fetch(self) -> Mapping[str, Any]:
        """Download and draw the demo corpus."""
        return {**corpus.fetched(self.progress.tick, self.cache), "commit": commit()}

    def curate(self) -> Mapping[str, Any]:
        """Take rows in, run the tasks over the krablet, export shards."""
        p, source = self.preset, Path(self.fact("fetch")["folder"])
        if not (source / "rows.jsonl").exists():  # the cache was removed since
            source = Path(self.fetch()["folder"])
        return corpus.curated(source, self.run.folder, p.concepts, p.rows, self.seed, self.progress.tick)

    def autoencoder(self) -> Mapping[str, Any]:
        """Train the autoencoder on everything that was kept."""
        return encode.autoencoder(
            self.shards, self.run.place("autoencoder"), self.preset, self.seed, self.on_step("autoencoder")
        )

    def encode(self) -> Mapping[str, Any]:
        """Encode all captions and prompts."""
        fitted = [text for one in self.records if self.keep(one) for text in one["captions"].values()]
        wanted = ["", *fitted, *self.prompts, *map(asking.prompt_of, self.candidates)]
        tell = lambda done, total: self.progress.tick("encode captions", done, total)  # noqa: E731
        folder = self.run.place("text")
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
        self.sheet(stage.name)
        return facts

    def space(self) -> Mapping[str, Any]:
        """Fit the joint space of pictures and words that ranks samples."""
        return ranking.fitted(self, self.run.place("space"))

    def pairs(self) -> Mapping[str, Any]:
        """Draw groups of pictures of some prompts, and pair them with each other and with real ones."""
        wanted = asking.spread(self.practice, self.preset.preference.prompts)
        return prefer.pairs(self.preferring, self.preset, [(asking.prompt_of(one), one["concept"]) for one in wanted])

    def preference(self) -> Mapping[str, Any]:
        """Learn from the pairs and draw a sheet."""
        stage = self.preset.preference
        model = self.model(self.preset.stages[-1].name)
        facts = prefer.train(
            self.preferring, stage, model, self.preset.config.patch, self.seed, self.on_step(stage.name)
        )
        self.sheet(stage.name)
        return facts

    def sheet(self, stage: str) -> None:
        """Draw the same prompts from the same noise after a stage."""
        seeds = range(4)
        pairs = [(prompt, seed) for prompt in self.prompts for seed in seeds]
        images = self.samples(stage, pairs)
        rows = [(prompt, list(images[i * 4 : i * 4 + 4])) for i, prompt in enumerate(self.prompts)]
        note = f"{stage}: first column the corpus's own picture, then seeds 0 to 3"
        real = self.references([*self.prompts])
        drawn = draw.sheet(rows, real, remarks=self.prompts, note=note)
        drawn.save(self.run.path("sheets", f"{stage}.png"))

    def model(self, stage: str) -> MMDiT:
        """The averaged weights of a finished stage."""
        return train.load_model(self.preset, self.run.folder / stage / "average.safetensors", 0)

    def samples(self, stage: str, pairs: Sequence[tuple[str, int]]) -> Tensor:
        """Pictures of (prompt, seed) pairs by the averaged weights of a stage."""
        sides = {one.name: one.side_px for one in self.preset.stages}
        return draw.draw(
            self.model(stage).eval(),
            self.text,
            self.coder,
            [prompt for prompt, _ in pairs],
            [seed for _, seed in pairs],
            side_px=sides.get(stage, self.preset.stages[-1].side_px),
            steps=self.preset.sample_steps,
            guidance=self.preset.guidance,
            on_progress=lambda done, total: self.progress.tick(f"draw after {stage}", done, total),
        )

    def judge(self) -> Mapping[str, Any]:
        """Rank samples of trained and of withheld pairs among all concepts."""
        return ranking.judged(self)

    def bundle(self) -> Path:
        """Put the last stage's averaged weights into a folder that `krea-sample --model` draws from."""
        about = {
            "data": "demo corpus: Fluent emoji (MIT), Noto emoji (Apache-2.0), Twemoji (CC BY 4.0)",
            "recipe": f"quickstart, preset {self.preset.name}, seed {self.seed}",
            "preset": asdict(self.preset),
            "commit": self.fact("fetch").get("commit", "unknown"),
            "concepts": list(self.vocabulary),
        }
        return bundle.save(
            self.run.folder / "model",
            model=self.model(self.drawn[-1]),
            reduction=encode.load_text(self.run.folder / "text")[1],
            autoencoder=self.coder,
            defaults=bundle.Defaults(
                side_px=self.preset.stages[-1].side_px,
                steps=self.preset.sample_steps,
                guidance=self.preset.guidance,
            ),
            about=about,
        )

    def report(self) -> Path:
        """Write the report."""
        return page.write_report(self)

    def on_step(self, name: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """A log that moves the bar of a stage."""

        def tell(step: int, total: int, metrics: Mapping[str, float]) -> None:
            what = next(key for key in ("loss", "accuracy") if key in metrics)
            self.progress.tick(f"{name}, {what} {metrics[what]:.3f}", step, total)

        return tell

    @property
    def preferring(self) -> prefer.Inputs:
        """What the preference stage is given."""
        before = self.preset.stages[-1].name
        tell = lambda done, total: self.progress.tick("look at samples", done, total)  # noqa: E731
        return prefer.Inputs(
            folder=self.run.place(self.preset.preference.name),
            draw=lambda pairs: self.samples(before, pairs),
            real=self.real,
            score=lambda images, concepts: self.yardstick.margins(images, concepts, tell),
            text=self.text,
            autoencoder=self.coder,
        )

    @cached_property
    def yardstick(self) -> ranking.Ranking:
        """The joint space of this run."""
        return ranking.load_ranking(self.run.folder / "space", self.fact("space")["concepts"])

    def real(self, prompts: Sequence[str]) -> Tensor:
        """The corpus's own pictures of prompts, `b 3 H W`, uint8, in the size of the last stage."""
        known = self.references(prompts, self.preset.stages[-1].side_px)
        return torch.stack([known[prompt] for prompt in prompts])

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
        return tuple(self.fact("curate")["vocabulary"])

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
    def candidates(self) -> list[dict[str, Any]]:
        """What may be drawn and ranked: concept, style, row id, and whether the pair was withheld."""
        return asking.candidates(self.records, self.vocabulary)

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """What is ranked at the end: all withheld pairs, and some that were trained on."""
        return asking.questions(self.candidates, self.preset.evals)

    @property
    def practice(self) -> list[dict[str, Any]]:
        """What preferences are learned from: pairs that were trained on and are not ranked."""
        return asking.practice(self.candidates, self.questions)

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The prompts of the sheets, with remarks."""
        return asking.sheet_prompts(self.vocabulary)

    def references(self, prompts: Sequence[str], side_px: int | None = None) -> dict[str, Tensor]:
        """The corpus's own pictures `3 H W` of prompts, where it has them."""
        names = {medium(one["meta"]): one["id"] for one in self.records}
        wanted = {names[prompt]: prompt for prompt in prompts if prompt in names}
        if not wanted:
            return {}
        batch = Batches(self.shards, len(wanted), side_px=side_px, keep=lambda one: one["id"] in wanted).at(0)
        return {wanted[one]: image for one, image in zip(batch.ids, batch.images, strict=True)}


def commit() -> str:
    """The commit of the working tree, or "unknown"."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"
