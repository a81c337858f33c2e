"""Colours: what tells optimizers apart, measured with all cones and without one kind of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.analysis.evidence import read_sweep
from optbench.report.charts.styles import COLOURS, DASHES, MARKERS, run_styles, styles_of
from tests.builders.fabricated_sweep import Shape, make_sweep

Array = NDArray[np.float64]

# Machado, Oliveira, Fernandes 2009, severity 1.0; on linear RGB.
DICHROMACIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
XYZ = np.array(
    (
        (0.4124564, 0.3575761, 0.1804375),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339, 0.1191920, 0.9503041),
    )
)
WHITE = np.array((0.95047, 1.0, 1.08883))


def linear(colour: str) -> Array:
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    t = XYZ @ rgb / WHITE
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array((116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])))


def ciede2000(one: Array, other: Array) -> float:
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1 = np.degrees(np.arctan2(b1, a1 * stretch)) % 360
    h2 = np.degrees(np.arctan2(b2, a2 * stretch)) % 360
    apart = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(apart) / 2)
    l_mean, c_mean = (l1 + l2) / 2, (c1 + c2) / 2
    h_mean = (h1 + h2) / 2
    if abs(h1 - h2) > 180:
        h_mean += 180 if h1 + h2 < 360 else -180
    t = (
        1
        - 0.17 * np.cos(np.radians(h_mean - 30))
        + 0.24 * np.cos(np.radians(2 * h_mean))
        + 0.32 * np.cos(np.radians(3 * h_mean + 6))
        - 0.20 * np.cos(np.radians(4 * h_mean - 63))
    )
    s_l = 1 + 0.015 * (l_mean - 50) ** 2 / np.sqrt(20 + (l_mean - 50) ** 2)
    s_c, s_h = 1 + 0.045 * c_mean, 1 + 0.015 * c_mean * t
    turn = 60 * np.exp(-(((h_mean - 275) / 25) ** 2))
    r = -np.sin(np.radians(turn)) * 2 * np.sqrt(c_mean**7 / (c_mean**7 + 25.0**7))
    dl, dc, dh = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + r * dc * dh))


def test_the_distance_is_ciede2000() -> None:
    # Sharma, Wu, Dalal 2005, pairs 1, 7, 17 and 25.
    for one, other, distance in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        found = ciede2000(np.array(one, float), np.array(other, float))
        assert found == pytest.approx(distance, abs=1e-4)


@pytest.mark.parametrize("vision", ["normal", *DICHROMACIES])
def test_any_two_colours_are_told_apart_by_everybody(vision: str) -> None:
    seen = np.array(DICHROMACIES[vision]) if vision != "normal" else np.eye(3)
    labs = [lab(np.clip(seen @ linear(colour), 0, 1)) for colour in COLOURS]
    assert min(ciede2000(*pair) for pair in itertools.combinations(labs, 2)) >= 13


@pytest.mark.parametrize("paper", ["#ffffff", "#14161a"])
def test_every_colour_stands_out_from_the_page_light_and_dark(paper: str) -> None:
    for colour in COLOURS:
        light, dark = sorted((float(XYZ[1] @ linear(c)) for c in (colour, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_colour_is_the_optimizer_and_dashes_are_the_rest(tmp_path: Path) -> None:
    make_sweep(tmp_path, Shape(num_optimizers=4, dims=(4, 8, 16), num_epochs=1))
    sweep = read_sweep(tmp_path)
    styles = run_styles(sweep)
    looks: dict[str, dict[str, set[str]]] = {"optimizer": {}, "network.dim": {}}
    for run in sweep.runs:
        style = styles[run.name]
        looks["optimizer"].setdefault(run.row["optimizer"], set()).add(style.colour)
        looks["network.dim"].setdefault(run.row["network.dim"], set()).add(style.dash)
    for by_value in looks.values():
        assert all(len(of_value) == 1 for of_value in by_value.values())
        assert len({look for of_value in by_value.values() for look in of_value}) == len(by_value)
    assert len({styles[run.name].anchor for run in sweep.runs}) == 12


def test_seeds_of_a_setting_look_alike_and_a_lone_factor_has_the_colours() -> None:
    rows = {
        f"{dim}-{seed}": {"network.dim": dim, "seed": seed} for dim in (4, 8) for seed in (1, 2)
    }
    styles = styles_of(rows, {"network.dim": ("4", "8"), "seed": ("1", "2")})
    assert styles["4-1"] == styles["4-2"]
    assert styles["4-1"][0] != styles["8-1"][0]
    assert {dash for _, dash in styles.values()} == {""}
    assert set(styles_of(rows, {"seed": ("1", "2")}).values()) == {(COLOURS[0], DASHES[0])}
    assert len(MARKERS) == len(DASHES)


def test_rates_of_each_optimizers_own_are_counted_within_it() -> None:
    rows = {
        f"{name}{place}": {"optimizer": name, "optimizer.unet_lr": rate * 10**place}
        for name, rate in (("adamw", 1e-4), ("lion", 2e-5), ("came", 3e-6))
        for place in range(3)
    }
    factors = {
        "optimizer": ("adamw", "lion", "came"),
        "optimizer.unet_lr": tuple(str(row["optimizer.unet_lr"]) for row in rows.values()),
    }
    assert len(set(styles_of(rows, factors).values())) == len(rows)
