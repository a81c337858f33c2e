"""The page's section of human ratings: scores, votes, notes, and how far metrics agree."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optbench import analysis
from optbench.analysis import MEASURES, RaterAgreement, is_missing
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.standings import Standings
from optbench.analysis.stats import Agreement, Interval, Strength
from optbench.metrics import METRICS
from optbench.report.wording import NONE

_MAX_NOTES = 500
_FEW_VOTES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedSetting:
    """One setting as people see it."""

    label: str
    score: float | None
    score_text: str  # mean and interval
    num_scores: int
    strength: float | None
    strength_text: str
    share_text: str  # of votes it would win against the mean one
    num_votes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What someone wrote of an image or a run; shown as text, whatever it holds."""

    run: RunEvidence
    rater: str
    place: str
    score: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingsSection:
    """Everything that people said of the images."""

    num_raters: int
    rated: tuple[RatedSetting, ...]  # highest first
    has_scores: bool
    has_votes: bool
    notes: tuple[Note, ...]
    num_notes_left_out: int
    self_agreement: str
    rater_agreement: str  # nothing with one rater
    agreements: tuple[tuple[str, str], ...]  # a measure, and how far it orders alike
    caution: str


def ratings_section(trainings: SweepEvidence, standings: Standings) -> RatingsSection | None:
    """Return what people said of a sweep's trainings; None where nobody said anything."""
    scores, votes = trainings.frames.scores, trainings.frames.votes
    if not len(scores) and not len(votes):
        return None
    of_run = {run: setting.label for setting in standings.settings for run in setting.runs}
    means = analysis.mean_scores(scores, of_run)
    strengths = {str(strength.name): strength for strength in analysis.preferences(votes, of_run)}
    rated = _rated(means, strengths)
    same = analysis.self_agreement(votes)
    notes = _notes(trainings)
    num_votes = sum(strength.num_votes for strength in strengths.values()) // 2
    raters = {*scores["rater"].map(str), *votes["rater"].map(str)}
    human = {label: strength.strength for label, strength in strengths.items()} or {
        label: mean.mean for label, mean in means.items()
    }
    return RatingsSection(
        num_raters=len(raters),
        rated=tuple(rated),
        has_scores=bool(means),
        has_votes=bool(strengths),
        notes=notes[:_MAX_NOTES],
        num_notes_left_out=max(0, len(notes) - _MAX_NOTES),
        self_agreement=""
        if same is None
        else f"{same.num_same} of {same.num_repeats} pairs shown twice got the same answer "
        f"(the true share is between {100 * same.interval[0]:.0f} and "
        f"{100 * same.interval[1]:.0f} %); three equal answers picked blindly would give 33 %.",
        rater_agreement=_raters_text(analysis.rater_agreement(votes, of_run)),
        agreements=tuple(
            (name, _agreement_text(agreement))
            for name, agreement in analysis.agreements(
                human, _measured(trainings, standings)
            ).items()
        ),
        caution=" ".join(_cautions(list(strengths.values()), num_votes)),
    )


def _raters_text(raters: Sequence[RaterAgreement]) -> str:
    """Return how far people agree with one another; nothing with fewer than two."""
    texts = []
    for agreed in raters:
        low, high = (f"{100 * share:.0f}" for share in agreed.interval)
        texts.append(
            f"{agreed.num_same} of {agreed.num_votes} votes of {agreed.rater} go to the setting "
            f"that the others' votes put higher ({low} to {high} % in truth)"
        )
    return "; ".join(texts)


def _cautions(strengths: Sequence[Strength], num_votes: int) -> Iterator[str]:
    if strengths and num_votes < _FEW_VOTES:
        yield (
            f"{num_votes} votes are few: with 5 settings and 100 votes a preference of 60 to 40 is "
            "not visible yet."
        )
    if any(strength.num_runs < 2 for strength in strengths):
        yield (
            "Votes on one training of a setting are about that LoRA file: the intervals know "
            "nothing of what another seed would give."
        )


def _rated(means: Mapping[str, Interval], strengths: Mapping[str, Strength]) -> list[RatedSetting]:
    rated = []
    for label in dict.fromkeys([*strengths, *means]):
        mean, strength = means.get(label), strengths.get(label)
        score_text = strength_text = share_text = NONE
        if mean is not None:
            score_text = f"{mean.mean:.0f}"
            if mean.low is not None and mean.high is not None:
                score_text += f" ({max(0.0, mean.low):.0f} to {min(100.0, mean.high):.0f})"
        if strength is not None:
            strength_text = (
                f"{strength.strength:+.2f} ({strength.low:+.2f} to {strength.high:+.2f})"
            )
            share_text = f"{100 * strength.win_share:.0f} %"
        rated.append(
            RatedSetting(
                label=label,
                score=mean.mean if mean else None,
                score_text=score_text,
                num_scores=mean.num_values if mean else 0,
                strength=strength.strength if strength else None,
                strength_text=strength_text,
                share_text=share_text,
                num_votes=strength.num_votes if strength else 0,
            )
        )
    return rated


def _measured(trainings: SweepEvidence, standings: Standings) -> Mapping[str, Mapping[str, float]]:
    """Return what was measured of each setting without people, turned so that more is better."""
    measured: dict[str, dict[str, float]] = {}
    for measure, title in MEASURES.items():
        for setting in standings.settings:
            if measure in setting.medians:
                of_measure = measured.setdefault(f"{title} (low is good)", {})
                of_measure[setting.label] = -setting.medians[measure]
    rows = trainings.frames.metrics
    last = {run.name: run.row.get("num_epochs") for run in trainings.runs}
    values: dict[str, dict[str, list[float]]] = {}
    of_run = {run: setting.label for setting in standings.settings for run in setting.runs}
    columns = (rows[name] for name in ("run", "epoch", "metric", "value"))
    for run, epoch, metric, value in zip(*columns, strict=True):
        is_known = isinstance(value, (int, float)) and not is_missing(value)
        if is_known and run in of_run and epoch == last[run]:
            values.setdefault(str(metric), {}).setdefault(of_run[run], []).append(float(value))
    for metric, by_setting in values.items():
        is_good = METRICS[metric].higher_is_better if metric in METRICS else None
        words = {True: "high is good", False: "low is good", None: "more of it"}[is_good]
        sign = -1 if is_good is False else 1
        measured[f"{metric} ({words})"] = {
            label: sign * statistics.fmean(numbers) for label, numbers in by_setting.items()
        }
    return measured


def _agreement_text(agreement: Agreement) -> str:
    text = f"{agreement.correlation:+.2f} over {agreement.num_things} settings"
    if agreement.low is None or agreement.high is None:
        return f"{text}: too few to mean anything"
    text += f" (between {agreement.low:+.2f} and {agreement.high:+.2f})"
    return text + (": no agreement shown" if agreement.low <= 0 <= agreement.high else "")


def _notes(trainings: SweepEvidence) -> tuple[Note, ...]:
    runs = {run.name: run for run in trainings.runs}
    notes = []
    for row in trainings.frames.scores.to_dict("records"):
        run = runs.get(row["run"])
        if run is None or is_missing(row["note"]) or not str(row["note"]).strip():
            continue
        words = [
            f"{name} {analysis.shown(row[name])}"
            for name in ("epoch", "prompt", "seed")
            if not is_missing(row[name])
        ]
        notes.append(
            Note(
                run=run,
                rater=str(row["rater"]),
                place=", ".join(words) or "the whole run",
                score=NONE if is_missing(row["score"]) else f"{float(row['score']):.0f}",
                text=str(row["note"]),
            )
        )
    return tuple(notes)
