"""Which runs of a list differ in one factor: by what was asked, not by what follows from it."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from optbench import analysis
from optbench.config.build import config_tree
from optbench.config.compose import SweepPlan, compose_runs, flags_first
from optbench.config.identity import changed_settings
from optbench.storage import files, resources
from optbench.storage.rundir import RunDir

pytestmark = pytest.mark.usefixtures("fake_assets")


def frame_of(asked: SweepPlan, *, says_changes: bool = True) -> pd.DataFrame:
    """Return the frame of finished runs, named by their place in the list."""
    rows: list[dict[str, Any]] = []
    for index, run in enumerate(asked.runs):
        row = {"sweep": "s", "run": str(index), **analysis.settings(config_tree(run.config))}
        row |= {"final_loss": 0.1, "seconds_per_step": 1.0, "seconds_total": 10.0}
        row["changed"] = " ".join(changed_settings(run.config)) if says_changes else None
        rows.append(row)
    return pd.DataFrame(rows)


def pairs_of(asked: SweepPlan, *, says_changes: bool = True) -> dict[tuple[str, str], str]:
    found = analysis.find_pairs(frame_of(asked, says_changes=says_changes))
    ends = (sorted((row.from_run, row.to_run), key=int) for row in found.itertuples())
    return {(one, other): name for (one, other), name in zip(ends, found["setting"], strict=True)}


def listed(*entries: str) -> SweepPlan:
    given = [f"+settings.n{index}='{text}'" for index, text in enumerate(entries)]
    return compose_runs(flags_first(["-m", *given]))


def test_a_recipes_own_rate_is_no_factor_and_a_typed_one_is() -> None:
    asked = listed("optimizer=adamw", "optimizer=lion", "optimizer=lion optimizer.lr=0.001")
    assert pairs_of(asked) == {("0", "1"): "optimizer", ("1", "2"): "optimizer.lr"}
    # Nothing but the resolved values: every recipe's rate looks like a factor of its own.
    assert pairs_of(asked, says_changes=False) == {("1", "2"): "optimizer.lr"}


def test_what_is_changed_together_with_the_recipe_is_a_second_factor() -> None:
    asked = listed("optimizer=adamw", "optimizer=lion optimizer.args.weight_decay=1")
    assert pairs_of(asked) == {}
    assert "optimizer.args.weight_decay" in analysis.differing(frame_of(asked))
    # From the resolved values alone it cannot be told from what lion brings along.
    assert pairs_of(asked, says_changes=False) == {("0", "1"): "optimizer"}


def test_a_dim_with_its_own_alpha_is_one_factor_and_with_another_two() -> None:
    asked = listed("network.dim=8", "network.dim=32", "network.dim=64 network.alpha=1")
    assert pairs_of(asked) == {("0", "1"): "network.dim"}


def test_one_factor_has_exactly_the_pairs_whose_entries_differ_in_one_key() -> None:
    """The whole shipped list, against the text of its own file."""
    file = OmegaConf.load(resources.resource_root() / "sweep" / "one_factor.yaml")
    entries = [
        dict(word.split("=", 1) for word in shlex.split(text))  # type: ignore[misc]
        for text in file.settings.values()  # type: ignore[union-attr]
    ]
    expected = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(entries), 2):
        unlike = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if len(unlike) == 1:
            expected[str(i), str(j)] = unlike[0]
    assert len(expected) > 20
    assert pairs_of(compose_runs(["sweep=one_factor"])) == expected


def test_four_optimizers_pair_without_lion_which_accumulates() -> None:
    asked = compose_runs(["sweep=four_optimizers"])
    assert [run.config.train.max_steps for run in asked.runs] == [3004, 3004, 3004, 751]
    assert pairs_of(asked) == dict.fromkeys([("0", "1"), ("0", "2"), ("1", "2")], "optimizer")
    assert set(analysis.differing(frame_of(asked))) >= {"optimizer", "train.gradient_accumulation"}


def test_a_continued_file_is_labelled_by_its_name() -> None:
    frame = frame_of(listed("seed=1", "seed=2"))
    frame["network.weights"] = ["/far/away/old.safetensors", None]
    frame["network.dim_from_weights"] = [True, False]
    frame["changed"] = ["seed network.weights", "seed"]
    assert "network.dim_from_weights" not in analysis.differing(frame)
    assert analysis.labels(frame)["s", "0"] == "network.weights=old seed=1"


def test_changes_are_read_from_the_run_and_nonsense_is_none(tmp_path: Path) -> None:
    for name, changed in (("a", ["network.dim"]), ("b", 3), ("c", [4]), ("d", [])):
        run = RunDir(tmp_path / "sweep" / name)
        files.write_atomic(run.config_path, "seed: 1\n")
        files.write_json(run.provenance_path, {"changed": changed})
    said = list(analysis.load(tmp_path / "sweep").runs["changed"])
    assert said[0] == "network.dim"
    assert said[3] == ""
    assert pd.isna(said[1])
    assert pd.isna(said[2])
