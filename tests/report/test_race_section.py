"""The report of a race: who leads and by how much, what was stopped where, tuned and untuned."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import optbench
from optbench import analysis
from optbench.analysis.evidence import read_sweep
from optbench.analysis.race import RaceVerdict, read_race, read_results, verdicts
from optbench.report.charts.styles import run_styles
from optbench.report.page import write_page
from optbench.report.race_section import RaceSection, race_section
from tests.builders.fabricated_race import make_race
from tests.statistics.races import DESIGN, SIGMA, Curve, FabricatedRace

ARMS = ("adamw", "lion", "prodigy")
CURVES = {
    "adamw": Curve(shape="adamw", best_rate=1.0, top=0.0335),
    "lion": Curve(shape="lion", best_rate=1.7, top=0.0327),
    "prodigy": Curve(shape="prodigy", best_rate=6.0, top=0.0312),
}


def fabricated(**changes: object) -> FabricatedRace:
    design = dataclasses.replace(DESIGN, arms=ARMS, **changes)  # type: ignore[arg-type]
    return FabricatedRace(design=design, curves=CURVES, drawn=np.random.default_rng(3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RaceVerdict]:
    sweep = tmp_path_factory.mktemp("race") / "whole"
    verdict = make_race(sweep, fabricated())
    assert verdict is not None
    return sweep, verdict


def section_of(sweep: Path) -> RaceSection:
    evidence = read_sweep(sweep)
    section = race_section(evidence, run_styles(evidence))
    assert section is not None
    return section


def test_what_is_read_from_disk_decides_as_what_was_run(whole: tuple[Path, RaceVerdict]) -> None:
    sweep, verdict = whole
    record = read_race(sweep)
    assert record is not None
    read = verdicts(record.design, read_results(optbench.load(sweep), record))
    assert read.ending == verdict.ending == "one_left"
    assert [(a.arm, a.standing, a.point) for a in read.arms] == [
        (a.arm, a.standing, a.point) for a in verdict.arms
    ]
    assert read.tunings == {
        arm: dataclasses.replace(
            tuning,
            tried=tuple(
                dataclasses.replace(t, scores={e: pytest.approx(s) for e, s in t.scores.items()})
                for t in tuning.tried
            ),
        )
        for arm, tuning in verdict.tunings.items()
    }
    assert read.spent == verdict.spent


def test_the_headline_says_rates_costs_size_seeds_and_images(
    whole: tuple[Path, RaceVerdict],
) -> None:
    sentences = section_of(whole[0]).sentences
    assert len(sentences) == 2
    pattern = (
        r"adamw x1 \(best of 11 rates, \d+ epochs of tuning\) against lion x[\d.]+ "
        r"\(best of 11 rates, \d+ epochs\): 0\.00\d\d lower "
        r"\(0\.00\d\d to 0\.00\d\d; 2 fresh seeds; 12 images\)\."
    )
    assert re.fullmatch(pattern, sentences[0])


def test_the_tuning_seed_is_no_evidence_in_any_table(whole: tuple[Path, RaceVerdict]) -> None:
    sweep, verdict = whole
    frames = optbench.load(sweep)
    standings = analysis.rank_settings(frames)
    seeds = {outcome.seed for setting in standings.settings for outcome in setting.outcomes}
    assert seeds == {"1", "2"}
    assert all("seed0" not in run for setting in standings.settings for run in setting.runs)
    assert not any("seed0" in run for run in frames.pairs.get("from_run", []))
    # The standings and the race say the same of the one that leads, with one interval.
    lead, lion = standings.lead, verdict.arms[1]
    assert lead is not None
    assert lead.label == "adamw lr_mult=1"
    other = next(s for s in standings.settings if s.recipe == lion.arm)
    assert other.standing is not None
    against = other.standing.against_best
    assert against is not None
    assert lion.against_lead is not None
    assert against.mean == pytest.approx(lion.against_lead.mean, abs=0.1 * SIGMA)
    assert standings.confidence == pytest.approx(0.99)


def test_every_recipe_has_the_badge_of_its_own_tuning(whole: tuple[Path, RaceVerdict]) -> None:
    section = section_of(whole[0])
    assert {panel.badge for panel in section.panels} == {"tuned: 11 rates, x1.5 apart, inside"}
    page = write_page(whole[0]).read_text()
    # Once for each ladder, and once for all settings.
    assert page.count("tuned: 11 rates, x1.5 apart, inside") == 4
    assert "untuned: 1 rate" not in page


def test_what_was_stopped_stays_and_is_no_unfinished_run(whole: tuple[Path, RaceVerdict]) -> None:
    section = section_of(whole[0])
    words = {row.words for row in section.tried}
    assert {"stopped at epoch 1 of 6", "stopped at epoch 2 of 6", "all 6 epochs"} <= words
    assert len(section.tried) == 33
    page = write_page(whole[0]).read_text()
    assert "stopped at epoch 2 of 6" in page
    assert 'id="undone"' not in page
    assert "to come" not in page
    assert "Which optimizer?" in page


def test_tuned_and_untuned_are_compared_after_as_many_epochs(
    whole: tuple[Path, RaceVerdict],
) -> None:
    sweep, verdict = whole
    rows = {row.arm: row for row in section_of(sweep).costs}
    assert rows["adamw"].worth == "0, it is the best"
    prodigy = rows["prodigy"]
    tried = {t.point.rate: t for t in verdict.tunings["prodigy"].tried}
    best = next(arm.point for arm in verdict.arms if arm.arm == "prodigy")
    assert best is not None
    epoch = int(prodigy.at_epoch)
    worth = tried[best.rate].scores[epoch] - tried[1.0].scores[epoch]
    assert float(prodigy.worth) == pytest.approx(worth, rel=0.1)
    assert worth > 0


def test_a_race_that_still_runs_has_a_page(tmp_path: Path) -> None:
    for num_batches in (1, 2, 4):
        sweep = tmp_path / str(num_batches)
        make_race(sweep, fabricated(), most_batches=num_batches)
        section = section_of(sweep)
        assert section.ending.startswith("The race is on: ")
        assert "due now" in section.ending
    assert write_page(tmp_path / "2").is_file()


def test_a_spent_budget_says_what_more_would_buy(tmp_path: Path) -> None:
    make_race(tmp_path / "short", fabricated(budget=70.0))
    short = section_of(tmp_path / "short")
    assert "before any optimizer had run with fresh seeds" in short.ending
    assert "race.budget" in short.more
    equal = dict.fromkeys(ARMS, CURVES["adamw"])
    race = dataclasses.replace(fabricated(budget=145.0), curves=equal)
    make_race(tmp_path / "tied", race)
    tied = section_of(tmp_path / "tied")
    assert "are tied." in tied.ending
    assert re.search(r"would buy \d+ fresh seeds? more of", tied.more)


def test_names_of_others_are_text_in_the_pictures(tmp_path: Path) -> None:
    arm = '<img src="x">'
    design = dataclasses.replace(DESIGN, arms=(arm, "lion"))
    curves = {arm: CURVES["adamw"], "lion": CURVES["lion"]}
    race = FabricatedRace(design=design, curves=curves, drawn=np.random.default_rng(1))
    sweep = tmp_path / "race"
    make_race(sweep, race, name_of={arm: "adamw"})
    page = write_page(sweep).read_text()
    assert '<img src="x">' not in page
    assert "&lt;img src=" in page


def test_a_corrupt_record_stops_no_page(tmp_path: Path) -> None:
    sweep = tmp_path / "race"
    make_race(sweep, fabricated())
    (sweep / "race.json").write_text('{"schema": 1, "design": {}}')
    page = write_page(sweep).read_text()
    assert 'id="race"' not in page
    assert "race.json" in page


def test_an_optimizer_has_one_colour_in_race_and_charts(whole: tuple[Path, RaceVerdict]) -> None:
    sweep, _ = whole
    record = read_race(sweep)
    assert record is not None
    styles = run_styles(read_sweep(sweep))
    colours = {panel.arm: panel.colour for panel in section_of(sweep).panels}
    assert len(set(colours.values())) == len(ARMS)
    for name, place in record.runs.items():
        assert styles[name].colour == colours[place.arm]
