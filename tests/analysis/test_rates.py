"""How far rates were tuned, recipe by recipe, and where dim and rate cannot be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from optbench.analysis.rates import Rung, Tuning, rank_trap, rate_source, tunings
from optbench.report.rates import rank_trap_sentence, rate_sources_sentence, tuning_badge


def ladder(recipe: str, losses: dict[float, float], lr_role: str = "manual") -> list[Rung]:
    return [
        Rung(key=f"{recipe} {rate:g}", rest=(recipe,), rates=(rate,), lr_role=lr_role, value=loss)
        for rate, loss in losses.items()
    ]


def badges(*rungs: list[Rung]) -> dict[str, str]:
    of_all = tunings([rung for of_recipe in rungs for rung in of_recipe])
    return {key: badge for key, tuning in of_all.items() if (badge := tuning_badge(tuning))}


def test_each_recipe_has_its_own_badge() -> None:
    nine = {0.2 * 1.5**step: abs(step - 4) for step in range(9)}
    assert badges(
        ladder("adamw", nine),
        ladder("lion", {1.0: 0.3, 3.0: 0.2, 10.0: 0.1}),
        ladder("came", {1.0: 0.5}),
        ladder("adafactor_auto", {1.0: 0.5}, lr_role="automatic"),
    ) == {
        "adamw 1.0125": "tuned: 9 rates, x1.5 apart, inside",
        "lion 10": "tuned: 3 rates, x3.2 apart, at the edge (highest)",
        "came 1": "untuned: 1 rate",
    }


def test_uneven_rates_are_said() -> None:
    assert badges(ladder("lion", {0.1: 0.3, 1.0: 0.2, 3.0: 0.4})) == {
        "lion 1": "tuned: 3 rates, x3 to x10 apart, inside"
    }


def test_the_lowest_rate_is_an_edge_too() -> None:
    assert badges(ladder("lion", {0.3: 0.1, 1.0: 0.2})) == {
        "lion 0.3": "tuned: 2 rates, x3.3 apart, at the edge (lowest)"
    }


def test_two_rates_varied_together_have_no_order() -> None:
    rungs = [
        Rung(key=f"{unet}/{text}", rest=("lion",), rates=(unet, text), lr_role="manual", value=unet)
        for unet, text in ((1.0, 1.0), (1.0, 2.0), (3.0, 1.0))
    ]
    assert tunings(rungs)["1.0/1.0"] == Tuning(
        num_rates=3, spacing=None, position=None, is_best=True, is_automatic=False
    )


def row(dim: int, **changes: Any) -> dict[str, Any]:
    plain = {"optimizer": "adamw", "network.dim": dim, "network.alpha": dim / 2, "lr_mult": 1.0}
    return plain | {name.replace("__", "."): value for name, value in changes.items()}


def test_dims_at_one_ratio_and_one_rate_are_a_trap() -> None:
    trap = rank_trap([row(128), row(16), row(64)])
    assert trap is not None
    assert (trap.dims, trap.ratio) == ((16, 64, 128), 0.5)
    # Both arms have the scale of these runs at the least dim: 8 / 16 and 2 / sqrt(16).
    assert trap.arms == (("network.alpha=8",), ("network.rslora=true", "network.alpha=2"))
    sentence = rank_trap_sentence(trap)
    assert "network.alpha=8 and network.rslora=true network.alpha=2" in sentence


@pytest.mark.parametrize(
    "rows",
    [
        [row(16)],
        [row(16), row(64, network__alpha=8.0)],  # a fixed alpha
        [row(16), row(64), row(64, network__rslora=True)],
        [row(16), row(64), row(64, lr_mult=0.3)],  # another rate
        [row(16), row(64, optimizer="lion")],  # each recipe has one dim
    ],
    ids=str,
)
def test_what_tells_dim_from_rate_is_no_trap(rows: list[dict[str, Any]]) -> None:
    assert rank_trap(rows) is None


def test_an_alpha_of_zero_stands_for_dim() -> None:
    trap = rank_trap([row(16, network__alpha=0.0), row(32, network__alpha=32.0)])
    assert trap is not None
    assert trap.ratio == 1


def test_what_no_race_found_is_said_of_a_base_that_was_raced() -> None:
    assert rate_sources_sentence({"adamw": {"usual"}, "lion": {"typed"}}, "sd15") == ""
    both = rate_sources_sentence({"lion": {"raced"}, "adamw": {"raced"}, "soap": {"scaled"}}, "x")
    assert "base=x the rates of adamw and lion come from races" in both
    assert "No race has found the rate of soap on base=x" in both


def test_a_single_rate_says_where_it_comes_from() -> None:
    (tuning,) = tunings(ladder("came", {1.0: 0.5})).values()
    assert tuning_badge(tuning, "raced") == "1 rate here, from a race on this base model"
    assert tuning_badge(tuning, "scaled") == "untuned: 1 rate, never raced on this base model"
    assert tuning_badge(tuning, "usual") == tuning_badge(tuning, "typed") == "untuned: 1 rate"


def config(lr_role: str, scale: float, **scales: float | None) -> dict[str, Any]:
    return {
        "base": {"name": "x", "lr_scale": scale, "lr_scales": scales},
        "optimizer": {"name": "lion", "traits": {"lr_role": lr_role}},
    }


@pytest.mark.parametrize(
    ("of_run", "changed", "source"),
    [
        (config("manual", 40, lion=40), (), "raced"),
        (config("manual", 10, lion=40), (), "scaled"),  # base.lr_scale=10 was typed
        (config("manual", 60, lion=None), (), "scaled"),
        (config("manual", 1), (), "usual"),
        (config("manual", 40, lion=40), ("optimizer.lr",), "typed"),
        (config("multiplier", 60, lion=1.5), (), "raced"),
        (config("multiplier", 60, lion=None), (), "scaled"),
        (config("automatic", 60), (), "own"),
        ({"base": {"lr_scale": 60}, "optimizer": {}}, (), None),  # a folder of before
        ({}, (), None),
    ],
)
def test_where_a_rate_comes_from(
    of_run: dict[str, Any], changed: tuple[str, ...], source: str | None
) -> None:
    assert rate_source(of_run, changed) == source
