"""The small parts: time left, plots, sheets, selections."""

import re

import pytest
import torch
from krea_data import demo
from krea_launcher import cli
from krea_launcher.draw import sheet
from krea_launcher.encode import trained_on
from krea_launcher.presets import PRESETS
from krea_launcher.progress import remaining
from krea_launcher.ranking import summary
from krea_launcher.report.curves import plot


def test_time_left_follows_the_pace_of_this_machine() -> None:
    expected = {"a": 10.0, "b": 20.0}
    assert remaining(expected, {}, "a", 0.0, 0.0) == 30
    assert remaining(expected, {"a": 20.0}, "b", 0.5, 20.0) == pytest.approx(20)
    assert remaining(expected, {"a": 5.0, "b": 5.0}, "", 0.0, 0.0) == 0


def test_plot_scales_points_and_leaves_out_what_is_not_finite() -> None:
    svg = plot({"one": [(0, 1.0), (5, float("nan")), (10, 3.0)]}, x="step", y="loss")
    points = re.search(r'<polyline points="([^"]+)"', svg)
    assert points is not None
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points[1].split())
    assert x1 > x0
    assert y1 < y0  # a larger value stands higher
    assert plot({"none": []}, x="step", y="loss") == "<p>No points.</p>"


def test_sheet_puts_reference_and_samples_in_place() -> None:
    red, blue = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64, dtype=torch.uint8)
    red[0], blue[2] = 255, 255
    image = sheet([("a red thing", [blue, red])], {"a red thing": red})
    assert image.getpixel((190 + 32, 32)) == (255, 0, 0)
    assert image.getpixel((190 + 68 + 32, 32)) == (0, 0, 255)
    assert image.getpixel((190 + 2 * 68 + 32, 32)) == (255, 0, 0)


def test_withheld_pictures_are_not_trained_on() -> None:
    concepts = [f"thing {n}" for n in range(400)]
    keep = trained_on(concepts)
    kept = {(c, s) for c in concepts for s in demo.STYLES if keep({"meta": {"concept": c, "style": s}})}
    assert not any(demo.withheld_concept(c) or demo.withheld_pair(c, s) for c, s in kept)
    assert 0.9 * 1600 < len(kept) < 1600
    assert not keep({"meta": {"concept": "unknown", "style": demo.STYLES[0]}})


def test_summary_of_ranks() -> None:
    found = summary([1, 1, 3, 20], ["a", "a", "b", "c"], 40)
    low, high = found.pop("median_between")
    assert 1 <= low < 2 < high <= 20
    assert found == {"count": 4, "median_rank": 2, "median_share": 0.05, "recall_at_1": 0.5, "recall_at_10": 0.75}
    assert summary([3, 3], ["a", "b"], 40)["median_between"] == [3, 3]
    assert summary([], [], 40) == {"count": 0}


def test_presets_are_those_of_the_command_line() -> None:
    assert tuple(PRESETS) == cli.NAMES
    for name, make in PRESETS.items():
        preset = make()
        assert preset.name == name
        assert preset.config.channels == preset.autoencoder.channels
        sides = [stage.side_px for stage in preset.stages]
        assert sides == sorted(sides)
        assert all(side % (4 * preset.config.patch) == 0 for side in sides)
