"""Real against generated pictures, and what a head that knows one generator makes of another.

    python benchmarks/curation/synthetic.py [--quick]

Real pictures are those of the demo corpus. One "generator" sends them through the demo model's autoencoder and back,
the other is the demo model, which draws the same labels in the same styles. Heads on open_nsfw's features learn one of
the two on codec-matched pairs, choose their operating point by recall on rows held out, and are tried on pictures that
they have not seen, of the generator they know and of the one they do not. Then the same with files that give the class
away: without matching, JPEG against PNG is all that a head learns.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import krea_model
import numpy as np
import torch
from krea_data import demo
from krea_data.classify.head import Config, Head, train
from krea_data.classify.matched import matched
from krea_data.classify.measures import roc_auc
from krea_data.embedders import OpenNsfw
from krea_data.rows import Row
from krea_data.tasks.caption import medium
from krea_data.tasks.picture import decode
from krea_model.pipeline import Pipeline
from krea_sampler.compose import demo_model
from PIL import Image

Images = list[Image.Image]
KINDS = ("round trips", "samples")
CONFIG = Config(penalty=30.0, recall=0.95, false_alarms=0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Vectors of matched pairs, whether each is generated, and which picture it is of."""

    vectors: np.ndarray
    generated: np.ndarray
    groups: list[int]


def said(words: str) -> None:
    """Tell how far it is."""
    print(words, file=sys.stderr, flush=True)


def real_pictures(count: int) -> tuple[list[Row], Images]:
    """So many pictures, spread over the corpus, in an order that mixes its sets."""
    folder = demo.corpus()
    rows = demo.rows(folder)
    chosen = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:count]]
    blobs = demo.blobs(folder)
    return chosen, [decode(blobs.get(row.blob))[0] for row in chosen]


def round_trips(pipeline: Pipeline, images: Images) -> Images:
    """Pictures as the autoencoder gives them back."""
    found: Images = []
    for image in images:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1  # H W 3
        back = pipeline.autoencoder.decode(pipeline.autoencoder.encode(pixels))[0]
        found.append(picture(((back + 1) * 127.5).round().clamp(0, 255).byte()))
    return found


def samples(pipeline: Pipeline, rows: Sequence[Row], batch: int = 16) -> Images:
    """Pictures that the model draws for the labels and styles of the rows."""
    found: Images = []
    for start in range(0, len(rows), batch):
        prompts = [medium(row.meta) for row in rows[start : start + batch]]
        found += [picture(one) for one in pipeline.draw(prompts, range(start, start + len(prompts)))]
        said(f"drew {len(found)} of {len(rows)}")
    return found


def picture(pixels: torch.Tensor) -> Image.Image:
    """`3 H W` as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def paired(embedder: OpenNsfw, real: Images, generated: Images, seed: int, copies: int) -> Pairs:
    """Both classes through the same encodings, embedded."""
    examples = list(matched(real, generated, seed, copies=copies))
    vectors = embedder([example.image for example in examples])
    said(f"embedded {len(examples)} pictures")
    return Pairs(
        vectors=vectors,
        generated=np.array([example.generated for example in examples]),
        groups=[example.group for example in examples],
    )


def learned(pairs: Pairs, name: str) -> Head:
    """A head for these pairs."""
    told = {"source": name}
    y, embedder = pairs.generated, OpenNsfw.name
    return train(pairs.vectors, y, name="synthetic", embedder=embedder, config=CONFIG, groups=pairs.groups, labels=told)


def tried(head: Head, pairs: Pairs) -> dict[str, float]:
    """What a head makes of pictures that it has not seen."""
    scores, true = head(pairs.vectors), pairs.generated
    from_point, from_yes = scores >= head.limits.unsure, scores >= head.limits.yes
    return {
        "roc_auc": roc_auc(scores, true),
        "recall": float(from_point[true].mean()),  # at the operating point: yes or unsure
        "false_alarms": float(from_point[~true].mean()),
        "yes_recall": float(from_yes[true].mean()),
        "yes_false_alarms": float(from_yes[~true].mean()),
    }


def as_jpeg(images: Images) -> Images:
    """Pictures as they come back from JPEG files of quality 60."""
    found: Images = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=60)
        found.append(Image.open(file).convert("RGB"))
    return found


def codec(embedder: OpenNsfw, real: Images, generated: Images, copies: int) -> dict[str, float]:
    """ROC-AUC of heads that learned from real JPEG files and generated PNG files, on files the other way round."""
    half = len(real) // 2
    known, other = (as_jpeg(real[:half]), generated[:half]), (real[half:], as_jpeg(generated[half:]))
    groups = list(range(half)) * 2
    plain = Pairs(vectors=embedder(known[0] + known[1]), generated=np.repeat([False, True], half), groups=groups)
    swapped = Pairs(
        vectors=embedder(other[0] + other[1]),
        generated=np.repeat([False, True], len(real) - half),
        groups=list(range(len(real) - half)) * 2,
    )
    with_matching = paired(embedder, *known, 5, copies)
    heads = {"plain": learned(plain, "plain"), "matched": learned(with_matching, "matched")}
    return {name: tried(head, swapped)["roc_auc"] for name, head in heads.items()}


def transfers(parts: dict[str, tuple[Pairs, Pairs]]) -> dict[str, dict[str, float]]:
    """Every head on every generator: "known -> tried on"; the known one is tried on other pictures than it learned."""
    found: dict[str, dict[str, float]] = {}
    for known, (learning, _) in parts.items():
        head = learned(learning, known)
        card = head.card
        print(
            f"learned {known}: held out ROC-AUC {card['roc_auc']:.3f}, calibration error"
            f" {card['calibration_error']:.3f}, precision {card['operating_point']['precision']:.2f} at recall"
            f" {card['operating_point']['recall']:.2f}, unsure {card['unsure']:.0%}, version {head.version}"
        )
        for other, (_, trying) in parts.items():
            found[f"{known} -> {other}"] = tried(head, trying)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table in Markdown."""
    head = "| learned -> tried on | ROC-AUC | recall | false alarms | recall of yes | false alarms of yes |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, row in found.items():
        shares = " | ".join(f"{row[key]:.0%}" for key in ("recall", "false_alarms", "yes_recall", "yes_false_alarms"))
        lines.append(f"| {name} | {row['roc_auc']:.3f} | {shares} |")
    return "\n".join(lines)


def measured(quick: bool = False) -> dict[str, float]:
    """The figures."""
    count, copies = (24, 1) if quick else (240, 3)
    rows, real = real_pictures(count)
    pipeline, embedder = krea_model.load(demo_model()), OpenNsfw(threads=torch.get_num_threads())
    made = {"round trips": round_trips(pipeline, real), "samples": samples(pipeline, rows)}
    half = count // 2
    parts = {
        kind: (
            paired(embedder, real[:half], images[:half], 1, copies),
            paired(embedder, real[half:], images[half:], 2, copies),
        )
        for kind, images in made.items()
    }
    found = transfers(parts)
    blind = {kind: codec(embedder, real[:half], images[:half], copies) for kind, images in made.items()}
    print(f"{count} pictures of each kind, {copies} encodings of each; half to learn from, half to try\n{table(found)}")
    for kind, areas in blind.items():
        print(
            f"{kind}, learned from real JPEG and generated PNG files, tried the other way round: ROC-AUC"
            f" {areas['plain']:.3f} as they are, {areas['matched']:.3f} matched"
        )
    flat = {
        f"synthetic_{name.replace(' -> ', '_to_').replace(' ', '_')}_{key}": row[key]
        for name, row in found.items()
        for key in ("roc_auc", "recall", "false_alarms")
    }
    codecs = {
        f"synthetic_codec_{kind.replace(' ', '_')}_{name}": blind[kind][name] for kind in KINDS for name in blind[kind]
    }
    return flat | codecs


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(measured(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
