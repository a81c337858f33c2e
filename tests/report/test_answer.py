"""The first words of the page: honest for any sweep, and never a rank that nothing supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optbench.analysis.evidence import read_sweep
from optbench.analysis.image_metrics import Flag
from optbench.analysis.stats import Strength
from optbench.report.answer import Answer, make_answer, people_prefer
from optbench.report.charts.styles import run_styles
from optbench.report.findings import Findings, make_findings
from optbench.report.image_flags import by_setting
from optbench.report.tables import SettingRow, setting_rows
from optbench.storage.resources import program
from tests.builders.fabricated import make_run, make_sweep

CLEAR = {
    ("adamw", 8): [-0.020, -0.022, -0.018],
    ("lion", 8): [-0.030, -0.032, -0.0279],
}
TIED = {("adamw", 8): [-0.030, -0.022, -0.028], ("lion", 8): [-0.029, -0.025, -0.0279]}


def findings_of(tmp_path: Path, gains: Any, **changes: Any) -> Findings:
    return findings_in(make_sweep(tmp_path / "s", gains, **changes))


def findings_in(folder: Path) -> Findings:
    sweep = read_sweep(folder)
    return make_findings(sweep, run_styles(sweep))


def said(found: Findings) -> str:
    answer = found.answer
    assert answer is not None
    lines = [*answer.sure, *answer.price, *answer.based_on, *answer.untested]
    commands = [f"{advice.text} {advice.command}" for advice in answer.next_steps]
    return "\n".join([answer.headline, *lines, *commands])


def test_a_clear_winner_is_named(tmp_path: Path) -> None:
    found = findings_of(tmp_path, CLEAR)
    assert said(found).startswith(
        "lion is best by held-out loss. Lowest validation loss on held-out images, 0.00997 "
        "(0.00982 to 0.0101) below adamw, the next. Every optimizer ran at one rate, its untuned "
        "default."
    )
    assert [row.verdict for row in found.settings] == ["lowest", "worse"]
    assert "hold at once with 95 %, over 3 seeds" in said(found)
    assert "show in most sweeps like this one" in said(found)
    assert "4 held-out images at 3 noise levels" in said(found)


def test_ties_are_called_ties_with_the_difference_that_would_show(tmp_path: Path) -> None:
    found = findings_of(tmp_path, TIED)
    text = said(found)
    assert text.startswith(
        "No winner: lion and adamw are tied. Their validation loss on held-out images does not "
        "separate them. A gap of 0.0"
    )
    assert [row.verdict for row in found.settings] == ["tied, lowest", "tied"]
    assert "seeds=6" in text


def test_one_seed_ranks_nothing(tmp_path: Path) -> None:
    found = findings_of(tmp_path, {key: gains[:1] for key, gains in CLEAR.items()})
    text = said(found)
    assert text.startswith(
        "No winner yet: lion leads, with one seed per setting. Lowest validation loss on held-out "
        "images, 0.01 below adamw."
    )
    assert "even if all 2 were equally good, one would come first" in text
    assert {row.verdict for row in found.settings} == {"cannot tell"}
    assert all("n = 1" in row.badges for row in found.settings)
    assert [row.label for row in found.settings] == ["adamw", "lion"]  # the sweep's order
    assert f"{program()} -m optimizer=adamw,lion seeds=3" in text


def with_flags(found: Findings, folder: Path, **labels: str) -> tuple[Answer, list[SettingRow]]:
    """Return answer and rows as they are when images of settings are burnt, or once were."""
    flags = [
        Flag(
            sweep=folder.name,
            run=run,
            kind="burnt",
            metric="clipped",
            value=0.5,
            base_value=None,
            epochs=(1, 2),
            is_last=what == "burnt",
        )
        for setting in found.standings.settings
        for run in setting.runs
        if (what := labels.get(setting.label))
    ]
    flagged = by_setting(found.standings, flags)
    answer = make_answer(read_sweep(folder), found.standings, flagged)
    assert answer is not None
    return answer, setting_rows(found.standings, flagged)


def test_a_loss_recommends_no_odd_pictures_without_a_word(tmp_path: Path) -> None:
    clear = findings_of(tmp_path, CLEAR)
    answer, rows = with_flags(clear, tmp_path / "s", lion="burnt")
    assert answer.headline.startswith("lion is best")
    assert answer.headline.endswith("But its images are flagged: look at them first.")
    assert answer.sure[0] == "Images of lion after the last epoch: burnt (clipped 0.5)."
    assert answer.sure[1] == "The lowest without flagged images: adamw."
    assert {row.label: "images flagged" in row.badges for row in rows} == {
        "lion": True,
        "adamw": False,
    }
    # Of what is not recommended, or was odd only before the end, nothing is said.
    for label, what in (("adamw", "burnt"), ("lion", "was burnt")):
        answer, _ = with_flags(clear, tmp_path / "s", **{label: what})
        assert "flagged" not in answer.headline
        assert "Images of" not in answer.sure[0]
    answer, _ = with_flags(clear, tmp_path / "s", lion="burnt", adamw="burnt")
    assert "Every setting here has flagged images." in answer.sure


def test_a_hint_is_told_of_odd_pictures_too(tmp_path: Path) -> None:
    hint = findings_of(tmp_path, {key: gains[:1] for key, gains in CLEAR.items()})
    answer, _ = with_flags(hint, tmp_path / "s", lion="burnt")
    assert answer.headline.startswith("No winner yet: lion")
    assert answer.headline.endswith("But its images are flagged: look at them first.")
    answer, _ = with_flags(hint, tmp_path / "s", adamw="burnt")
    assert "flagged" not in answer.headline


def test_of_tied_settings_those_with_flagged_images_are_named(tmp_path: Path) -> None:
    answer, _ = with_flags(findings_of(tmp_path, TIED), tmp_path / "s", lion="burnt")
    assert answer.headline.endswith("But look first at the images of lion: they are flagged.")


def test_one_setting_has_nothing_beside_it(tmp_path: Path) -> None:
    text = said(findings_of(tmp_path, {("adamw", 8): [-0.02]}))
    assert text.startswith("One setting has finished.")
    assert (
        "It is 0.02 below the untouched base model (17 % of the base model's loss there)." in text
    )
    assert "optimizer=adamw,lion seeds=3" in text


def test_what_is_no_better_than_the_base_is_said(tmp_path: Path) -> None:
    assert "Nothing here is better than the untouched base" in said(
        findings_of(tmp_path, {("adamw", 8): [0.02, 0.03], ("lion", 8): [0.01, 0.02]})
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("diverged", "No run finished. 2 diverged."),
        ("interrupted", "No run has finished yet. 2 interrupted."),
    ],
)
def test_without_results_nothing_is_recommended(tmp_path: Path, status: str, words: str) -> None:
    found = findings_of(tmp_path, {("adamw", 8): [-0.1], ("lion", 8): [-0.2]}, status=status)
    assert said(found).startswith(words)
    assert "lowest" not in said(found)
    assert ("lr_mult=" in said(found)) == (status == "diverged")


def test_an_empty_folder_has_no_answer(tmp_path: Path) -> None:
    assert findings_in(tmp_path).answer is None


def test_what_breaks_for_one_seed_is_never_recommended(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", CLEAR)
    make_run(tmp_path / "s", "lion-4", -0.5, optimizer="lion", seed=4, status="diverged")
    found = findings_in(tmp_path / "s")
    assert said(found).startswith("Only adamw is left: every other setting has a failed run.")
    assert "lion (1 of 4)" in said(found)
    (row,) = [one for one in found.settings if one.label == "lion"]
    assert row.verdict == "unsafe"
    assert "diverged: 1 of 4" in row.badges


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_best_and_lowest_are_of_one_selection(tmp_path: Path, num_seeds: int) -> None:
    """Of four settings two with a failed run end lower than any that can be recommended."""
    gains = {"adamw": -0.040, "lion": -0.038, "prodigy": -0.020, "came": -0.010}
    for optimizer, gain in gains.items():
        for seed in range(1, num_seeds + 1):
            name = f"{optimizer}{seed}"
            make_run(tmp_path / "s", name, gain - 1e-4 * seed, optimizer=optimizer, seed=seed)
    for optimizer in ("adamw", "lion"):
        make_run(tmp_path / "s", optimizer, optimizer=optimizer, seed=9, status="diverged")
    answer = findings_in(tmp_path / "s").answer
    assert answer is not None
    leads = "is best of those without a failure" if num_seeds > 1 else "leads, with one seed"
    assert f"prodigy {leads}" in answer.headline
    assert "below came" in answer.headline
    assert answer.headline.endswith(
        f"Lower but not recommended: adamw (1 of {num_seeds + 1} runs failed) and lion "
        f"(1 of {num_seeds + 1} runs failed)."
    )


def test_half_a_sweep_counts_what_is_done(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", CLEAR)
    make_run(tmp_path / "s", "x", -0.9, optimizer="lion", dim=16, seed=1, status="interrupted")
    text = said(findings_in(tmp_path / "s"))
    assert text.startswith("lion network.dim=8 is best by held-out loss.")
    assert "1 of 7 runs is not finished" in text


def test_a_value_is_judged_at_the_best_of_the_others(tmp_path: Path) -> None:
    gains = {
        ("adamw", 8): [-0.020, -0.0202, -0.0198],
        ("adamw", 16): [-0.0201, -0.0199, -0.0201],
        ("lion", 8): [-0.030, -0.0303, -0.0299],
        ("lion", 16): [-0.0301, -0.0298, -0.0301],
    }
    found = findings_of(tmp_path, gains)
    assert said(found).startswith(
        "lion network.dim=8 and lion network.dim=16 are tied for best. Lowest "
    )
    assert "optimizer: at its best, lion is 0.01 (" in said(found)
    assert "network.dim: 8 and 16 are tied; they differ by less than 0.0" in said(found)
    assert "Dim and learning rate move together here: alpha / dim is 0.5" in said(found)


def test_the_training_loss_is_named_as_the_weakest_evidence(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    for optimizer in ("adamw", "lion"):
        for seed in (1, 2):
            make_run(sweep, f"{optimizer}{seed}", None, optimizer=optimizer, seed=seed)
    text = said(findings_in(sweep))
    assert "Weak: memorizing the images lowers it too" in text
    assert "validate=default" in text


def test_a_folder_of_several_commands_is_repeated_by_each_of_them(tmp_path: Path) -> None:
    made = {"adamw": ["optbench", "-m", "optimizer=adamw"], "lion": ["optimizer=lion", "lr_mult=2"]}
    for optimizer, command in made.items():
        make_run(tmp_path / "s", optimizer, -0.1, optimizer=optimizer, command=command)
    text = said(findings_in(tmp_path / "s"))
    assert f"{program()} -m optimizer=adamw seeds=3 sweep_name=s\n" in text
    assert f"{program()} -m optimizer=lion lr_mult=2 seeds=3" in text
    # Of very many commands one is made: a list, because a product would be other runs.
    for number in range(4):
        command = [f"optimizer=came{number}"]
        make_run(tmp_path / "s", f"c{number}", optimizer=f"came{number}", command=command)
    text = said(findings_in(tmp_path / "s"))
    assert "seeds=3" in text
    assert 'command_6:"optimizer=lion lr_mult=2"' in text
    assert "optimizer=adamw,came0" not in text


@pytest.mark.parametrize("status", ["done", "diverged"])
def test_no_rates_are_advised_for_a_class_that_finds_its_own(tmp_path: Path, status: str) -> None:
    gains = {("adamw", 8): [-0.1], ("adafactor_auto", 8): [-0.2]}
    for role, is_advised in (("manual", True), ("automatic", False)):
        text = said(findings_of(tmp_path / role, gains, status=status, lr_role=role))
        assert ("lr_mult=" in text) == is_advised


@pytest.mark.parametrize("splits", [(), ("training",), ("held_out",)])
def test_of_the_embedded_character_there_are_held_out_pictures(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    text = said(findings_of(tmp_path, CLEAR, dataset="mirelle", splits=splits))
    assert ("validate=default" in text) == (splits != ("held_out",))
    assert "validate.dir=FOLDER" not in text


def test_pictures_that_were_trained_on_are_said(tmp_path: Path) -> None:
    assert "overfitting cannot be seen" in said(findings_of(tmp_path, CLEAR, splits=("training",)))


def test_time_is_not_compared_beside_other_work(tmp_path: Path) -> None:
    found = findings_of(tmp_path, TIED, load=9.0)
    assert "Timings are unreliable" in said(found)
    assert "Of these the fastest" not in said(found)
    assert all("machine was busy" in row.badges for row in found.settings)
    assert all(run.rank is None for run in read_sweep(tmp_path / "s").runs)


def test_the_edge_of_the_ladder_is_said(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    for optimizer, gains in (("adamw", (-0.01, -0.02, -0.03)), ("lion", (-0.01, -0.03, -0.02))):
        for mult, gain in zip((0.3, 1.0, 3.0), gains, strict=True):
            make_run(sweep, f"{optimizer}{mult}", gain, optimizer=optimizer, lr_mult=mult)
    found = findings_in(sweep)
    badges = [(row.label, badge) for row in found.settings for badge in row.badges]
    assert {label: badge for label, badge in badges if "rate" in badge} == {
        "adamw lr_mult=3": "tuned: 3 rates, x3.2 apart, at the edge (highest)",
        "lion lr_mult=1": "tuned: 3 rates, x3.2 apart, inside",
    }
    (chart,) = [chart for chart in found.charts if chart.title == "Sensitivity to lr_mult"]
    assert "adamw at 3 (the edge)" in chart.note
    assert "lion at 1" in chart.note


def test_unlike_losses_are_not_put_in_an_order(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    for loss in ("l2", "huber"):
        for seed in (1, 2):
            make_run(sweep, f"{loss}{seed}", None, loss=loss, seed=seed)
    found = findings_in(sweep)
    assert said(found).startswith(
        "No ranking: the training losses are not comparable. The loss is computed differently "
        "(loss.*). A validation loss compares them: validate=default."
    )
    assert {row.verdict for row in found.settings} == {"not compared"}
    assert not [chart for chart in found.charts if chart.name == "results"]


def test_commands_are_safe_to_type(tmp_path: Path) -> None:
    command = [
        "optbench",
        "-m",
        "hydra.sweep.dir=/tmp",
        "optimizer=adamw,lion",
        "note=$(rm -rf x)",
        "seed=1,2",
    ]
    found = findings_of(tmp_path, TIED, command=command)
    assert "'note=$(rm -rf x)'" in said(found)
    assert "seed=1,2 seed=" not in said(found)
    assert f"{program()} -m optimizer=adamw,lion 'note" in said(found)
    assert "rm -rf x)' seed=1,2,3,4,5,6 render=off" in said(found)


FORGETFUL = {"splits": ("held_out", "others"), "forgetting": 0.05}


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_where_every_setting_is_broken_none_is_recommended(tmp_path: Path, num_seeds: int) -> None:
    gains = {key: values[:num_seeds] for key, values in CLEAR.items()}
    found = findings_of(tmp_path, gains, **FORGETFUL)
    assert found.answer is not None
    assert found.answer.headline == (
        "Every setting is broken. Lower learning rates are worth a try: lr_mult=0.3."
    )
    assert {row.verdict for row in found.settings} == {"broken"}
    assert len(found.broken) == 2


def test_a_broken_setting_is_not_recommended_however_low_its_loss(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", {("lion", 8): CLEAR["lion", 8]}, **FORGETFUL)
    sound = {"splits": ("held_out", "others"), "forgetting": 0.001}
    others = {("adamw", 8): CLEAR["adamw", 8], ("came", 8): [-0.010, -0.011, -0.009]}
    found = findings_in(make_sweep(sweep, others, **sound))
    assert found.answer is not None
    assert found.answer.headline.startswith("adamw is best by held-out loss and forgetting.")
    assert "Lower but not recommended" not in found.answer.headline
    assert {row.label: row.verdict for row in found.settings} == {
        "adamw": "lowest", "came": "worse", "lion": "broken",
    }  # fmt: skip


def strength(name: str, value: float, *, num_runs: int = 1) -> Strength:
    return Strength(
        name=name,
        strength=value,
        low=value - 0.5,
        high=value + 0.5,
        num_votes=40,
        num_runs=num_runs,
    )


@pytest.mark.parametrize(
    ("preferred", "words"),
    [
        ("lion", ", and so does the loss."),
        ("adamw", ", the loss does not."),
    ],
)
def test_what_people_prefer_comes_first_and_a_loss_may_disagree(
    tmp_path: Path, preferred: str, words: str
) -> None:
    found = findings_of(tmp_path, CLEAR)
    other = "adamw" if preferred == "lion" else "lion"
    judged = people_prefer([strength(preferred, 1.0), strength(other, -1.0)])
    answer = make_answer(read_sweep(tmp_path / "s"), found.standings, {}, judged=judged)
    assert answer is not None
    assert answer.headline.startswith(
        f"People prefer {preferred}{words} 73 % of votes against the average setting, 40 votes on "
        "one training of it. By loss: lion is best by held-out loss."
    )


def test_votes_that_show_nothing_and_several_trainings_are_said_so() -> None:
    assert people_prefer([]) is None
    assert people_prefer([strength("lion", 0.4), strength("adamw", -0.4)]) is None
    # Above 0 by its interval, but the strongest of equals comes there too while one goes on voting.
    assert people_prefer([strength("lion", 0.6), strength("adamw", -0.6)]) is None
    judged = people_prefer([strength("lion", 1.0, num_runs=3)])
    assert judged is not None
    assert judged.words.endswith("40 votes on 3 trainings of it")
