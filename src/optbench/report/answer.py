"""The page's first words: what to use, how sure that is, what was not tested, what would help."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optbench import analysis
from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.standings import BROKEN, DONE, RATES, Setting, Standings
from optbench.report.advice import Advice, surer
from optbench.report.image_flags import against, beware
from optbench.report.wording import bytes_text, listed, seconds_text, times

_MANY_SEEDS = 6  # fewer pairs than six can never have a sign test below 5 %
_MAX_NAMED = 6
_MAX_PRICED = 3
_SAME_SPEED = 1.005
_WHAT: dict[str, str] = {
    "validation_held_out": "validation loss on pictures that were not trained on",
    "validation_training": "validation loss on pictures that were trained on",
    "final_loss": "training loss",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer in plain words; every list may be empty."""

    headline: str
    sure: tuple[str, ...]
    price: tuple[str, ...]
    rests_on: tuple[str, ...]
    untested: tuple[str, ...]
    surer: tuple[Advice, ...]


def make_answer(
    sweep: SweepEvidence, standings: Standings, odd: Mapping[str, str]
) -> Answer | None:
    """Return the answer to a sweep's question, or None where there is no run at all.

    Args:
        sweep: What lies in the folder.
        standings: How its settings stand by their losses.
        odd: What is odd about settings' pictures (`oddities`); a loss sees nothing of it.
    """
    if not sweep.runs:
        return None
    trainings = sweep.only(analysis.TRAINING)
    if not trainings.runs:
        return _of_files(sweep)
    sure: list[str] = []
    if not standings.finished:
        headline = _nothing_finished(trainings)
    else:
        chosen = _chosen(standings)
        headline = f"{_headline(standings, odd)}{beware(chosen, odd)}"
        ordered = sorted(standings.finished, key=_mean) if standings.is_comparable else []
        sure = [*against(chosen, ordered, odd), *_sureness(trainings, standings)]
    return Answer(
        headline=headline,
        sure=tuple(sure),
        price=tuple(_price(trainings, standings)),
        rests_on=tuple(_rests_on(trainings, standings)),
        untested=tuple(_untested(trainings, standings)) if standings.finished else (),
        surer=tuple(surer(trainings, standings)),
    )


def _of_files(sweep: SweepEvidence) -> Answer:
    done = [run for run in sweep.runs if run.row["status"] == DONE]
    return Answer(
        headline=f"{len(done)} of {times(len(sweep.runs), 'LoRA file')} made from others. What "
        "each keeps of its original, and for how many bytes, is in the table below.",
        sure=(
            "Resizing draws nothing at random: equal settings make an equal file again, so sizes "
            "and distances are exact. How much of a distance shows in pictures is for eyes.",
        ),
        price=(),
        rests_on=(),
        untested=("Other LoRA files: how far one can be shrunk depends on what it learned.",),
        surer=(),
    )


def _nothing_finished(trainings: SweepEvidence) -> str:
    counts = Counter(run.status for run in trainings.runs)
    told = listed([f"{count} {status}" for status, count in counts.most_common()])
    broken = sum(run.row["status"] in BROKEN for run in trainings.runs)
    if broken == len(trainings.runs):
        return f"No run came to its end ({told}), so there is nothing to recommend yet."
    return f"No run is finished yet ({told}). Nothing can be said before the first ones are."


def _chosen(standings: Standings) -> Sequence[Setting]:
    """Return the settings that the losses put first; none where they put none."""
    if not standings.is_comparable or len(standings.finished) == 1 or standings.is_ranked:
        return standings.best
    return [_lowest(standings)]


def _lowest(standings: Standings) -> Setting:
    finished = standings.finished
    return min([one for one in finished if not one.num_broken] or finished, key=_mean)


def _headline(standings: Standings, odd: Mapping[str, str]) -> str:
    finished, best = standings.finished, standings.best
    if len(finished) == 1:
        only = "One setting" if len(standings.settings) == 1 else f"Only {_named(finished)}"
        return f"{only} is finished: there is nothing to compare it with."
    if not standings.is_comparable:
        return (
            f"These runs cannot be put in an order by their {_WHAT[standings.measure]}: "
            "they were measured unlike. Judge by the pictures."
        )
    if not standings.is_ranked:
        return (
            f"A hint, not an answer: {_lowest(standings).label} has the lowest "
            f"{_WHAT[standings.measure]}, but not every setting ran with two seeds, and another "
            "seed may turn the order around."
        )
    sound = [one for one in best if one.label not in odd] or best
    if len(best) == 1:
        return f"Use {best[0].label}: it has the lowest {_WHAT[standings.measure]}."
    if len(best) == len(finished):
        return f"No difference was found between {_named(best)}.{_take(_cheapest(sound))}"
    return f"{_tied(standings)}{_take(_cheapest(sound))}"


def _tied(standings: Standings) -> str:
    """Return the settings that are not worse; by each varied setting where these are a product."""
    best, finished = standings.best, standings.finished
    values = [list(dict.fromkeys(column)) for column in zip(*(o.values for o in best), strict=True)]
    if len(values) < 2 or math.prod(map(len, values)) != len(best):
        return f"{_named(best)} are tied for the best."
    wanted, free = [], []
    for index, (name, kept) in enumerate(zip(standings.factors, values, strict=True)):
        if len(kept) == len({one.values[index] for one in finished}):
            free.append(name)
        else:
            wanted.append(f"{name} {listed(kept).replace(' and ', ' or ')}")
    whatever = f"; {listed(free)} made no difference that shows" if free else ""
    return f"Use {', '.join(wanted)}{whatever}."


def _take(cheap: Setting | None) -> str:
    return f" Of these the fastest is {cheap.label}." if cheap else ""


def _sureness(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    finished, what = standings.finished, _WHAT[standings.measure]
    if standings.measure != "final_loss" and standings.is_comparable:
        yield _against_base(standings)
    if len(finished) > 1 and standings.is_comparable:
        yield from _how_far(standings, what)
    if len(finished) > 1:
        for one in standings.by_factor:
            yield from _by_factor(one.factor, standings)
    if standings.is_ranked and standings.deviation:
        yield (
            f"The seed alone moves this loss by {_short(standings.deviation)} (standard "
            "deviation, measured here). Take smaller differences for luck."
        )
    unfinished = [run for run in trainings.runs if run.row["status"] not in (DONE, *BROKEN)]
    if unfinished:
        yield (
            f"{len(unfinished)} of {times(len(trainings.runs), 'run')} {_are(unfinished)} not "
            "finished; they count nowhere here, because the middle of a schedule is not its end. "
            "The answer may change when they are done."
        )
    broken = [one for one in standings.settings if one.num_broken]
    if broken:
        told = listed(
            [f"{one.label} ({one.num_broken} of {len(one.runs)})" for one in broken[:_MAX_NAMED]]
        )
        more = f" and {len(broken) - _MAX_NAMED} more settings" if len(broken) > _MAX_NAMED else ""
        yield f"Came to no result: {told}{more}. A setting that breaks for one seed is a risk."


def _against_base(standings: Standings) -> str:
    lowest = min(standings.finished, key=_mean)
    mean = _mean(lowest)
    if mean >= 0:
        return (
            "Nothing here is better than the untouched base by this measure: too little was "
            "learned, or too much was broken."
        )
    name = "it" if len(standings.settings) == 1 else f"the lowest, {lowest.label},"
    return f"For scale: {name} is {_short(-mean)} below the untouched base."


def _how_far(standings: Standings, what: str) -> Iterator[str]:
    best, finished = standings.best, standings.finished
    if not standings.is_ranked:
        ordered = sorted(finished, key=_mean)
        gap = _short(_mean(ordered[1]) - _mean(ordered[0]))
        yield (
            f"n = 1: not every setting has two seeds. {ordered[0].label} is {gap} lower than the "
            f"next, {ordered[1].label}. Of {len(finished)} settings that are all equally good one "
            "would come out first, too."
        )
        return
    worse = [one for one in finished if one.standing and one.standing.is_worse]
    if worse and worse[0].standing and (gap_ := worse[0].standing.against_best):
        yield (
            f"{worse[0].label}, the closest that is worse, has a {what} {_short(gap_.mean)} "
            f"higher than {best[0].label} (between {_short(gap_.low or 0.0)} and "
            f"{_short(gap_.high or 0.0)}, over {gap_.num_blocks} seeds)."
        )
    if len(best) > 1:
        yield (
            f"Tied means: over {standings.num_seeds} seeds the interval of the difference to "
            f"{best[0].label}, the lowest, includes 0. It does not mean that they are equal."
        )
    if standings.num_seeds < _MANY_SEEDS:
        yield (
            f"{standings.num_seeds} seeds are few: intervals are wide, and only large differences "
            "can be seen."
        )


def _by_factor(factor: str, standings: Standings) -> Iterator[str]:
    """Yield what one varied setting did over all others, where there are others."""
    if len(standings.factors) < 2:
        return
    found = next(one for one in standings.by_factor if one.factor == factor)
    if len(found.standings) < 2:
        return
    best = found.standings[0]
    for one in found.standings[1:]:
        interval = one.against_best
        if interval is None or not one.is_worse:
            continue
        lower, both = found.num_lower[str(one.name)]
        over = (
            f"{interval.num_blocks} seeds"
            if found.is_over_seeds
            else f"{interval.num_blocks} other settings, at one seed"
        )
        yield (
            f"{factor}: {best.name} is lower than {one.name} in {lower} of {times(both, 'pair')}, "
            f"by {_short(interval.mean)} (between {_short(interval.low or 0.0)} and "
            f"{_short(interval.high or 0.0)}, over {over})."
        )
    tied = [str(one.name) for one in found.standings[1:] if one.is_tied]
    if tied:
        yield f"{factor}: {listed([str(best.name), *tied[:_MAX_NAMED]])} cannot be told apart."


def _price(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if not standings.finished:
        return
    crowded = [run for run in trainings.runs if run.was_crowded]
    if crowded:
        yield (
            "Time is not compared here: other work ran on this machine beside "
            f"{len(crowded)} of {times(len(trainings.runs), 'run')}."
        )
        return
    steps = {one.label: one.cost("seconds_per_step") for one in standings.finished}
    known = {label: seconds for label, seconds in steps.items() if seconds}
    if not known:
        return
    quick, slow = (end(known, key=lambda label: known[label]) for end in (min, max))
    chosen = [one for one in standings.best if one.label in known]
    if len(chosen) > _MAX_PRICED:
        chosen = [one for one in chosen if one.label in (quick, slow)]
    for one in chosen:
        ratio = known[one.label] / known[quick]
        beside = f", {ratio:.2f} x as long as {quick}" if ratio > _SAME_SPEED else ""
        if one.label == quick and len(known) > 1:
            beside = ", the fastest"
        yield (
            f"{one.label}: {seconds_text(known[one.label])} a step{beside}; "
            f"{seconds_text(one.cost('seconds_total'))} of training, at most "
            f"{bytes_text(one.cost('peak_memory_bytes'))} of memory, a file of "
            f"{bytes_text(one.cost('lora_bytes'))}."
        )


def _rests_on(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if not standings.finished:
        return
    if standings.measure == "final_loss":
        yield (
            "The mean training loss of the last epoch: the weakest evidence there is, because a "
            "LoRA that only memorizes its pictures has a low one, too."
        )
        if standings.num_validated:
            yield (
                f"{standings.num_validated} of {times(len(trainings.runs), 'run')} have a "
                "validation loss, which counts only when all have."
            )
        return
    split = "held_out" if standings.measure == "validation_held_out" else "training"
    rows = trainings.frames.validation
    rows = rows[rows["split"] == split]
    kind = "pictures that no run trained on" if split == "held_out" else "of the training pictures"
    yield (
        f"The validation loss after the last epoch, on {rows['image'].nunique()} {kind} at"
        f" {rows['timestep'].nunique()} noise levels, with the same noise for every run, and "
        "minus the untouched base's own loss there: below 0 is better than the base."
    )
    if split == "training":
        yield (
            "These pictures were trained on, so a LoRA that memorizes them looks good: overfitting "
            "cannot be seen."
        )
    yield "A lower loss is not always the nicer picture. Look at them before you choose."


def _untested(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    factors = trainings.factors
    if not any(name in factors for name in RATES):
        yield (
            "Other learning rates. Every optimizer ran at its recipe's own, and another may win at "
            "a rate tuned to it: comparisons at untuned rates are mostly comparisons of rates."
        )
    for name, what in (("base", "base model"), ("dataset", "data set")):
        if name not in factors:
            values = {str(run.row[name]) for run in trainings.runs if run.row.get(name)}
            yield f"Another {what}{f' than {listed(sorted(values)[:3])}' if values else ''}."
    if "train.epochs" not in factors and "train.max_steps" not in factors:
        steps = {run.row.get("num_steps") for run in trainings.runs if run.row["status"] == DONE}
        if len(steps) == 1:
            yield f"Shorter or longer training than {times(int(next(iter(steps)) or 0), 'step')}."
    if not len(trainings.frames.scores) and not len(trainings.frames.votes):
        yield "What people see: nobody has scored the pictures yet."


def _mean(setting: Setting) -> float:
    values = [outcome.value for outcome in setting.outcomes]
    return sum(values) / len(values)


def _cheapest(settings: Sequence[Setting]) -> Setting | None:
    """Return the setting with the fastest step, None where time was not measured undisturbed."""
    known = [(one.cost("seconds_per_step"), one) for one in settings]
    if any(seconds is None for seconds, _ in known):
        return None
    if any(run.was_crowded for one in settings for run in one.runs):
        return None
    return min(known, key=lambda pair: pair[0] or 0.0)[1]


def _named(settings: Sequence[Setting]) -> str:
    names = [one.label for one in settings[:_MAX_NAMED]]
    if len(settings) > _MAX_NAMED:
        names.append(f"{len(settings) - _MAX_NAMED} more settings")
    return listed(names)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
