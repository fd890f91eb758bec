"""A sparse autoencoder on real pictures: what it explains, how many latents die, how fast it trains.

    python benchmarks/curation/features.py [--quick] [--page features.html]

The pictures are those of the demo corpus, embedded by open_nsfw. The rate of training is printed as a share of the
machine's own: the arithmetic of the step's matrix products over that of a plain product of large matrices in this run.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from krea_data import demo
from krea_data.embedders import OpenNsfw
from krea_data.rows import Row
from krea_data.sae.model import encode_all
from krea_data.sae.names import name_features
from krea_data.sae.page import page
from krea_data.sae.training import Config, train
from krea_data.tasks.picture import decode
from PIL import Image

_SQUARE = 2048


def matrix_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second of this machine's matrix product, fp32."""
    a, b = torch.randn(_SQUARE, _SQUARE), torch.randn(_SQUARE, _SQUARE)
    a @ b
    done, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        a @ b
        done += 1
    return done * 2 * _SQUARE**3 / (time.perf_counter() - start)


def step_operations(features: int, config: Config) -> float:
    """Of one step: the products of encoder and decoder, forward once and backward twice."""
    return 3 * 2 * 2 * config.batch * features * config.latents


def labels_of(row: Row) -> list[str]:
    """The words that the corpus says about a picture."""
    words = [str(row.meta.get("label", "")), str(row.meta.get("style", "")), str(row.meta.get("group", ""))]
    return [word for word in [*words, *map(str, row.meta.get("tags", ()))] if word]


def embedded(count: int) -> tuple[list[Row], list[Image.Image], np.ndarray]:
    """So many pictures, spread over the corpus, and their vectors."""
    folder = demo.corpus()
    rows = demo.rows(folder)
    rows = rows[:: max(1, len(rows) // count)][:count]
    blobs = demo.blobs(folder)
    images = [decode(blobs.get(row.blob))[0] for row in rows]
    embedder, vectors = OpenNsfw(threads=torch.get_num_threads()), []
    for start in range(0, len(images), 64):
        vectors.append(embedder(images[start : start + 64]))
        print(f"\rembedded {min(start + 64, len(images))} of {len(images)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rows, images, np.concatenate(vectors)


def measured(quick: bool = False, write: Path | None = None) -> dict[str, float]:
    """The figures; with `write` also the page of features."""
    rows, images, vectors = embedded(200 if quick else 2000)
    config = Config(latents=512, k=8, steps=60 if quick else 3000, batch=256, learning_rate=1e-3, dead_after=20_000)
    start = time.perf_counter()
    fitted = train(vectors, config)
    rate = step_operations(vectors.shape[1], config) * config.steps / (time.perf_counter() - start)
    share = rate / matrix_rate()
    labels: Sequence[Sequence[str]] = [labels_of(row) for row in rows]
    features = name_features(encode_all(fitted.model, vectors), labels)
    named = sum(1 for feature in features if feature.name) / max(1, len(features))
    summary = (
        f"{len(rows)} pictures, {config.latents} latents, about {fitted.active:.1f} a picture; explained variance"
        f" {fitted.explained:.3f}, dead {fitted.dead:.1%}, named {named:.0%};"
        f" training at {share:.2f} of the matrix rate"
    )
    print(summary)
    if write is not None:
        best = sorted(features, key=lambda feature: -feature.share)
        text = page(best, images.__getitem__, lambda row: ", ".join(labels[row][:4]), title="Features", summary=summary)
        write.write_text(text, "utf-8")
    return {
        "sae_explained_variance": fitted.explained,
        "sae_dead_share": fitted.dead,
        "sae_named_share": named,
        "sae_training_vs_matrix_rate": share,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    print(json.dumps(measured(given.quick, given.page)))


if __name__ == "__main__":
    main()
