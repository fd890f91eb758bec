"""report.html: what went in, what was dropped and why, how training went, what the model draws, how to go on."""

import base64
import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krea_infra.telemetry import read_json_lines

from krea_launcher.corpus import picture
from krea_launcher.report.curves import plot
from krea_launcher.run import write

if TYPE_CHECKING:
    from krea_launcher.quickstart import Quickstart

__all__ = ["write_report"]


def write_report(work: "Quickstart") -> Path:
    """Write the page of a finished run and return its path."""
    sections = [
        _head(work),
        _bars(work),
        _sheets(work),
        _ranks(work),
        _funnel(work),
        _training(work),
        _costs(work),
        _next(work),
    ]
    style = files("krea_launcher.report").joinpath("style.css").read_text("utf-8")
    title = f"Quickstart {work.preset.name}"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
        f"<main>{''.join(sections)}</main></html>\n"
    )
    path = work.run.folder / "report.html"
    write(path, page)
    return path


def _embedded(data: bytes, alt: str, kind: str = "") -> str:
    return (
        f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = lambda row, tag: "".join(f"<{tag}>{one}</{tag}>" for one in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _head(work: "Quickstart") -> str:
    curated, last = work.fact("curate"), work.fact(work.preset.stages[-1].name)
    return (
        f"<h1>A model that draws, from {curated['rows']:,} real pictures</h1>"
        f"<p>{curated['kept']:,} pictures were kept by the curation. A Krea-2-shaped transformer of "
        f"{last['parameters'] / 1e6:.1f} M parameters learned {len(work.fact('space')['concepts'])} concepts in four "
        f"styles. Preset <b>{work.preset.name}</b>, seed {work.seed}, {_seconds(work) / 60:.1f} minutes in all.</p>"
    )


def _seconds(work: "Quickstart") -> float:
    return sum(work.fact(name)["seconds"] for name in work.stages())


def _bars(work: "Quickstart") -> str:
    """What was found beside what it should be; the time is that of nano on two cores."""
    last = list(work.fact("judge")["stages"].values())[-1]
    memory = max(work.fact(name)["peak_bytes"] for name in work.stages()) / 2**30
    rows = [("peak memory, workers included", f"{memory:.1f} GiB", "under 6 GiB", memory < 6)]
    if work.preset.name == "nano":
        minutes = _seconds(work) / 60
        rows.insert(0, ("whole run", f"{minutes:.1f} min", "under 10 min after downloads", minutes < 10))
    for kind, bar in (("trained", 0.10), ("withheld", 0.25)):
        if last[kind]["count"]:
            share = last[kind]["median_share"]
            rows.append((f"median rank, {kind} pairs", f"{share:.1%}", f"best {bar:.0%} of concepts", share <= bar))
    return _table(("", "this run", "wanted", ""), [(*row[:3], "yes" if row[3] else "<b>no</b>") for row in rows])


def _sheets(work: "Quickstart") -> str:
    parts = [
        "<h2>What it draws</h2><p>The same prompts from the same noise after every stage. The first column is the "
        "corpus's own picture. The last rows are withheld: pairs of a known concept and a known style that "
        "were never trained on together, then concepts that were never trained on at all.</p>"
    ]
    for stage in reversed(work.drawn):
        data = (work.run.folder / "sheets" / f"{stage}.png").read_bytes()
        seen = f"<h3>After {stage}</h3>{_embedded(data, f'samples after {stage}', 'sheet')}"
        parts.append(seen if stage == work.drawn[-1] else f"<details><summary>After {stage}</summary>{seen}</details>")
    return "".join(parts)


def _ranks(work: "Quickstart") -> str:
    found, n = work.fact("judge"), work.fact("judge")["concepts"]
    kinds = {"trained": "trained pairs", "withheld": "withheld pairs"}
    lines = [
        (f"after {stage}, {words}", figures[kind])
        for stage, figures in reversed(found["stages"].items())
        for kind, words in kinds.items()
    ]
    lines.append(("real pictures of the withheld pairs", work.fact("space")["real_withheld"]))
    rows = [
        (name, one["count"], _middle(one), f"{one['median_share']:.1%}", *_recalls(one))
        for name, one in lines
        if one["count"]
    ]
    rows.append(("chance", "", f"{(n + 1) / 2:g}", "50%", f"{1 / n:.3f}", f"{min(1, 10 / n):.3f}"))
    return (
        "<h2>Is it what was asked for?</h2><p>Each sample is ranked by how near its concept is among all "
        f"{n} concepts in a joint space of pictures and words, fitted on real pictures only. The pairs of the "
        "preference stage were chosen by this space too, for other prompts.</p>"
        + _table(
            (
                "what",
                "pictures",
                "median rank (95 % of resampled prompts)",
                "share of concepts",
                "recall at 1",
                "recall at 10",
            ),
            rows,
        )
    )


def _middle(one: Mapping[str, Any]) -> str:
    low, high = one["median_between"]
    return f"{one['median_rank']:g} ({low:g} to {high:g})"


def _recalls(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['recall_at_1']:.3f}", f"{one['recall_at_10']:.3f}"


def _funnel(work: "Quickstart") -> str:
    found = work.fact("curate")
    rows = []
    for step in found["funnel"]:
        rows.append((step["task"], f"{step['seen']:,}", f"{step['kept']:,}", ""))
        for reason, count in step["dropped"].items():
            images = "".join(
                _embedded(picture(work.run.folder, found["blobs"][one]), one, "thumb")
                for one in step["examples"][reason]
            )
            rows.append(("", "", f"&minus;{count:,}", f"<b>{html.escape(reason)}</b><br>{images}"))
    return "<h2>The funnel</h2>" + _table(("task", "seen", "kept", "dropped, with examples"), rows)


def _training(work: "Quickstart") -> str:
    lines = {stage.name: _points(work, stage.name, "loss") for stage in work.preset.stages}
    last = work.preset.stages[-1].name
    bins = {f"t from {b}": _points(work, last, f"loss_t{b}") for b in ("0.00", "0.25", "0.50", "0.75")}
    tuned = work.preset.preference.name
    deltas = {kind: _points(work, tuned, f"{kind}_delta") for kind in ("winner", "loser")}
    return (
        "<h2>Training</h2><div class='plots'><figure>"
        + plot(lines, x="step of the stage", y="velocity loss")
        + "<figcaption>Loss per stage</figcaption></figure><figure>"
        + plot(bins, x="step", y="loss")
        + f"<figcaption>Loss of {last} by time: 0 is the image, 1 is noise</figcaption></figure><figure>"
        + plot(deltas, x="step", y="loss, to that before")
        + f"<figcaption>{tuned}: the loss of winners should stay, that of losers rise</figcaption></figure></div>"
    )


def _points(work: "Quickstart", stage: str, key: str) -> list[tuple[float, float]]:
    """Steps and values; after an interruption a step may stand twice, the later line counts."""
    lines = read_json_lines(work.run.folder / stage / "metrics.jsonl")
    return sorted({line["step"]: line[key] for line in lines if key in line}.items())


def _costs(work: "Quickstart") -> str:
    rows = []
    for name in work.stages():
        facts: Mapping[str, Any] = work.fact(name)
        step = f"{facts['step_s'] * 1e3:.0f} ms" if "step_s" in facts else ""
        memory = f"{facts['peak_bytes'] / 2**30:.2f} GiB"
        rows.append((name, f"{facts['seconds']:.0f} s", facts.get("steps", ""), step, memory, _note(facts)))
    head = ("stage", "time", "steps", "time per step", "peak memory so far", "")
    return "<h2>What it cost</h2>" + _table(head, rows)


def _note(facts: Mapping[str, Any]) -> str:
    if "psnr_db" in facts:
        return f"{facts['psnr_db']} dB on {facts['held_out']} pictures that it did not see"
    if "images_per_s" in facts:
        return f"{facts['images_per_s']:.0f} images per second"
    if "captions" in facts:
        return f"{facts['captions']:,} captions"
    return ""


def _next(work: "Quickstart") -> str:
    model, place = shlex.quote(str(work.run.folder / "model")), shlex.quote(str(work.run.folder / "curation"))
    longer = shlex.quote(str(work.run.folder.with_name("small")))
    commands = [
        ("Draw with it", f'uv run krea-sample "red apple, flat style" --model {model}'),
        ("Look at the curation", f"uv run krea-curate funnel --home {place}"),
    ]
    if work.preset.name != "small":
        commands.append(("Train longer", f"uv run krea-launch quickstart --preset small --out {longer}"))
    rows = "".join(f"<dt>{name}</dt><dd><code>{html.escape(command)}</code></dd>" for name, command in commands)
    return f"<h2>Go on</h2><dl>{rows}</dl>"
