"""Human ratings of settings: mean scores, strengths from votes, and agreement with metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from optbench.analysis import stats
from optbench.analysis.comparisons import is_missing
from optbench.analysis.score_files import CELL
from optbench.analysis.stats import Agreement, Comparison, Interval, Strength


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAgreement:
    """How often raters said the same of a pair of images shown to them a second time."""

    num_same: int
    num_repeats: int

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share may be."""
        return stats.proportion_interval(self.num_same, self.num_repeats)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterAgreement:
    """How often a rater prefers what the votes of all others put higher."""

    rater: str
    num_same: int
    num_votes: int  # between two settings of which the others' votes put one higher, without ties

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share may be; half of them is no agreement."""
        return stats.proportion_interval(self.num_same, self.num_votes)


def mean_scores(scores: pd.DataFrame, settings: Mapping[str, str]) -> dict[str, Interval]:
    """Return each setting's mean score, highest first.

    The block is the run where a setting has several, because images of one LoRA are not
    replicates of its training; else the image.

    Args:
        scores: As `optbench.load` has them.
        settings: Each run's setting; runs that are not in it are left out.
    """
    by_setting: dict[str, list[tuple[str, tuple[object, ...], float]]] = {}
    columns = ("run", "epoch", "prompt", "seed", "width", "height", "score")
    for *cell, score in zip(*(scores[name] for name in columns), strict=True):
        setting = settings.get(str(cell[0]))
        if setting is not None and not is_missing(score):
            place = tuple(None if is_missing(value) else value for value in cell)
            by_setting.setdefault(setting, []).append((str(cell[0]), place, float(score)))
    intervals = {}
    for setting, rows in by_setting.items():
        has_runs = len({run for run, _, _ in rows}) > 1
        blocks = [run if has_runs else place for run, place, _ in rows]
        intervals[setting] = stats.mean_interval([score for _, _, score in rows], blocks)
    return dict(sorted(intervals.items(), key=lambda item: -item[1].mean))


def preferences(votes: pd.DataFrame, settings: Mapping[str, str]) -> list[Strength]:
    """Return the strengths of settings from votes between images of two of them.

    A pair that was shown a second time counts once, as do images of one setting never. Votes of
    one prompt and seed are not independent, nor are those of one training (`bradley_terry`).
    """
    return stats.bradley_terry([comparison for _, comparison in _comparisons(votes, settings)])


def rater_agreement(votes: pd.DataFrame, settings: Mapping[str, str]) -> list[RaterAgreement]:
    """Return for every rater how far the others' votes agree; empty with fewer than two raters.

    The same two images are rarely shown to two people, so votes are compared with the order of the
    settings that all others' votes give.
    """
    by_rater: dict[str, list[Comparison]] = {}
    for rater, comparison in _comparisons(votes, settings):
        by_rater.setdefault(rater, []).append(comparison)
    agreements = []
    for rater, own in by_rater.items():
        others = [vote for name, of in by_rater.items() if name != rater for vote in of]
        strengths = {one.name: one.strength for one in stats.bradley_terry(others)}
        same = []
        for vote in own:
            if vote.winner is None or not {vote.first, vote.second} <= strengths.keys():
                continue
            gap = strengths[vote.first] - strengths[vote.second]
            if gap:
                same.append((gap > 0) == (vote.winner == "first"))
        if same:
            agreements.append(RaterAgreement(rater=rater, num_same=sum(same), num_votes=len(same)))
    return agreements


def _comparisons(
    votes: pd.DataFrame, settings: Mapping[str, str]
) -> Iterator[tuple[str, Comparison]]:
    """Give rater and vote of every pair of two settings that was shown for the first time."""
    columns = ("rater", "left_run", "right_run", "winner", "repeat", "left_prompt", "left_seed")
    for rater, left, right, winner, is_repeat, *cell in zip(
        *(votes[name] for name in columns), strict=True
    ):
        sides = settings.get(str(left)), settings.get(str(right))
        if is_repeat or winner == "skip" or None in sides or sides[0] == sides[1]:
            continue
        won = {"left": "first", "right": "second"}.get(str(winner))
        yield (
            str(rater),
            Comparison(
                first=sides[0],
                second=sides[1],
                winner=won,  # type: ignore[arg-type]
                cell=tuple(map(str, cell)),
                runs=(str(left), str(right)),
            ),
        )


def self_agreement(votes: pd.DataFrame) -> SelfAgreement | None:
    """Return how often a repeated pair had the same answer of the same rater; None without any.

    Sides may be the other way round the second time; skipped pairs are left out.
    """
    first_answers: dict[object, object] = {}
    num_same = num_repeats = 0
    ends = [[f"{side}_{name}" for name in CELL] for side in ("left", "right")]
    for row in votes.to_dict("records"):
        left, right = ([_plain(row[name]) for name in names] for names in ends)
        if row["winner"] == "skip":
            continue
        chosen = {"left": left, "right": right}.get(row["winner"], "tie")
        answer = repr(chosen)
        pair = row["rater"], *sorted([repr(left), repr(right)])
        if not row["repeat"]:
            first_answers[pair] = answer
        elif pair in first_answers:
            num_repeats += 1
            num_same += first_answers[pair] == answer
    return SelfAgreement(num_same=num_same, num_repeats=num_repeats) if num_repeats else None


def agreements(
    human: Mapping[str, float], measures: Mapping[str, Mapping[str, float]]
) -> dict[str, Agreement]:
    """Return how alike people and each measure order the settings; of all of them more is better.

    Intervals hold together with 95 %, whatever the number of measures (Bonferroni).

    Args:
        human: Each setting's score or strength.
        measures: Of each measure its value for every setting, turned so that more is better.
    """
    alike = {}
    confidence = 1 - (1 - stats.CONFIDENCE) / max(1, len(measures))
    for name, values in measures.items():
        both: Sequence[str] = [setting for setting in human if setting in values]
        agreement = stats.rank_agreement(
            [human[s] for s in both], [values[s] for s in both], confidence=confidence
        )
        if agreement is not None:
            alike[name] = agreement
    return alike


def _plain(value: object) -> object:
    """Return a number as a frame with gaps and one without both have it."""
    if is_missing(value):
        return None
    return float(value) if isinstance(value, (int, float)) else value
