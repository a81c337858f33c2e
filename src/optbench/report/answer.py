"""Put the conclusions of a sweep into the page's first words: what to use, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optbench import analysis
from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.next_steps import MANY_SEEDS, untested
from optbench.analysis.outcomes import Unlike
from optbench.analysis.standings import BROKEN, DONE, Setting, Standings, fastest
from optbench.report.advice import Advice, advise
from optbench.report.image_flags import flagged_leaders, warning
from optbench.report.wording import bytes_text, listed, seconds_text, times

_MAX_NAMED = 6
_MAX_PRICED = 3
_SAME_SPEED = 1.005
_MEASURES: Mapping[str, str] = {
    "validation_held_out": "validation loss on held-out images",
    "validation_training": "validation loss on training images",
    "final_loss": "training loss",
}
_VALIDATE = "validate=default"
_VALIDATE_HELD_OUT = "validate.dir=FOLDER"
# Why losses do not compare, and what would make them comparable.
_UNLIKE: Mapping[Unlike, tuple[str, str]] = {
    "base": ("the base models differ", ""),
    "resolution": ("the images have other sizes (dataset.resolution)", _VALIDATE),
    "captions": ("the captions differ (dataset, train.max_token_length)", _VALIDATE),
    "images": ("the training images differ", _VALIDATE_HELD_OUT),
    "clip_skip": ("the captions are read by other layers (train.clip_skip)", _VALIDATE),
    "dropout": ("dropout adds to the loss while training", _VALIDATE),
    "batch": ("the batches differ (train.batch_size, gradient_accumulation)", _VALIDATE),
    "loss": ("the loss is computed differently (loss.*)", _VALIDATE),
    "num_steps": ("the numbers of steps differ", _VALIDATE),
    "validation": ("the validation losses are of other images, captions or noise levels", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer in plain words; every list may be empty."""

    headline: str
    sure: tuple[str, ...]
    price: tuple[str, ...]
    based_on: tuple[str, ...]
    untested: tuple[str, ...]
    next_steps: tuple[Advice, ...]


def make_answer(
    sweep: SweepEvidence, standings: Standings, flagged: Mapping[str, str]
) -> Answer | None:
    """Return the answer to a sweep's question, or None where there is no run at all.

    Args:
        sweep: What lies in the folder.
        standings: How its settings compare by their losses.
        flagged: What is wrong with settings' images (`image_flags.by_setting`); a loss sees nothing
            of it.
    """
    if not sweep.runs:
        return None
    trainings = sweep.only(analysis.TRAINING)
    if not trainings.runs:
        num_done = sum(run.row["status"] == DONE for run in sweep.runs)
        return Answer(
            headline=f"{num_done} of {times(len(sweep.runs), 'LoRA file')} resized. The table "
            "below shows what each keeps of its original, and for how many bytes.",
            sure=(
                "Resizing is deterministic: equal settings make an equal file, so sizes and "
                "distances are exact. Whether a distance is visible is for your eyes to judge.",
            ),
            price=(),
            based_on=(),
            untested=(
                "Other LoRA files: how far one can be shrunk depends on what it has learned.",
            ),
            next_steps=(),
        )
    advice = tuple(advise(trainings, standings))
    price = tuple(_price(trainings, standings))
    if not standings.finished:
        counts = Counter(run.status for run in trainings.runs)
        statuses = listed([f"{count} {status}" for status, count in counts.most_common()])
        if all(run.row["status"] in BROKEN for run in trainings.runs):
            headline = f"No run came to its end ({statuses}), so there is nothing to recommend yet."
        else:
            headline = (
                f"No run is finished yet ({statuses}). Nothing can be said before the first ones "
                "are."
            )
        return Answer(
            headline=headline, sure=(), price=price, based_on=(), untested=(), next_steps=advice
        )
    chosen = standings.chosen
    ordered = standings.ordered if standings.is_comparable else ()
    return Answer(
        headline=f"{_headline(standings, flagged)}{warning(chosen, flagged)}",
        sure=(*flagged_leaders(chosen, ordered, flagged), *_sureness(trainings, standings)),
        price=price,
        based_on=tuple(_based_on(trainings, standings)),
        untested=tuple(_untested(trainings, standings)),
        next_steps=advice,
    )


def _headline(standings: Standings, flagged: Mapping[str, str]) -> str:
    best, measure = standings.best, _MEASURES[standings.measure]
    sound = [setting for setting in best if setting.label not in flagged] or best
    quickest = fastest(sound)
    speed = f" Of these the fastest is {quickest.label}." if quickest else ""
    match standings.conclusion:
        case "one_setting":
            only = "One setting" if len(standings.settings) == 1 else f"Only {_named(best)}"
            return f"{only} is finished: there is nothing to compare it with."
        case "not_comparable":
            loss = "Training" if standings.measure == "final_loss" else "Validation"
            why = listed([_UNLIKE[name][0] for name in standings.unlike])
            overrides = {_UNLIKE[name][1] for name in standings.unlike} - {""}
            if "validation" in standings.unlike:
                way = " The same command measures them alike; nothing is retrained."
            elif "base" in standings.unlike or not overrides:
                way = ""
            else:
                way = f" {max(overrides)} makes them comparable; nothing is retrained."
            return f"{loss} losses are not comparable here: {why}.{way}"
        case "one_seed":
            return (
                f"A hint, not an answer: {standings.lowest.label} has the lowest {measure}, but "
                "not every setting ran with two seeds, and another seed may reverse the order."
            )
        case "one_left":
            return f"Use {standings.lowest.label}: every other setting has runs that broke."
        case "clear":
            return f"Use {best[0].label}: it has the lowest {measure}."
        case "all_tied":
            return f"No difference was found between {_named(best)}.{speed}"
    tied = standings.tied_values
    if tied is None:
        return f"{_named(best)} are tied for the best.{speed}"
    # Where the tied settings are a product of values: each varied setting by itself.
    decisive = [
        f"{name} {listed(values).replace(' and ', ' or ')}"
        for name, values in tied.decisive.items()
    ]
    free = tied.indifferent
    whatever = f"; {listed(free)} made no difference that shows" if free else ""
    return f"Use {', '.join(decisive)}{whatever}.{speed}"


def _sureness(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    finished = standings.finished
    if standings.is_comparable:
        if standings.measure != "final_loss":
            lowest = standings.ordered[0]
            name = "it" if len(standings.settings) == 1 else f"the lowest, {lowest.label},"
            yield (
                "Nothing here is better than the untouched base model by this measure: too little "
                "was learned, or too much was broken."
                if lowest.mean >= 0
                else f"For scale: {name} is {_short(-lowest.mean)} below the untouched base model."
            )
        if standings.is_ranked:
            yield from _differences(standings)
        elif len(finished) > 1:
            first, second, *_ = standings.ordered
            yield (
                f"n = 1: not every setting has two seeds. {first.label} is "
                f"{_short(second.mean - first.mean)} lower than the next, {second.label}. Of "
                f"{len(finished)} equally good settings one would come out first, too."
            )
    if len(finished) > 1 and len(standings.factors) > 1:
        yield from _factor_by_factor(standings)
    if standings.is_ranked and standings.deviation:
        yield (
            f"Luck moves a run by {_short(standings.deviation)} (standard deviation, the seed's "
            "common effect taken out)."
        )
    unfinished = [run for run in trainings.runs if run.row["status"] not in (DONE, *BROKEN)]
    if unfinished:
        yield (
            f"{len(unfinished)} of {times(len(trainings.runs), 'run')} "
            f"{'is' if len(unfinished) == 1 else 'are'} not "
            "finished and left out, because the middle of a schedule is not its end. "
            "The answer may change when they are done."
        )
    broken = [setting for setting in standings.settings if setting.num_broken]
    if broken:
        names = listed(
            [f"{s.label} ({s.num_broken} of {len(s.runs)})" for s in broken[:_MAX_NAMED]]
        )
        more = f" and {len(broken) - _MAX_NAMED} more settings" if len(broken) > _MAX_NAMED else ""
        yield f"Broken runs: {names}{more}. A setting that breaks for one seed is a risk."


def _differences(standings: Standings) -> Iterator[str]:
    best, worse = standings.best, standings.closest_worse
    if worse and worse.standing and (gap := worse.standing.against_best):
        yield (
            f"{worse.label}, the closest setting that is worse, has a "
            f"{_MEASURES[standings.measure]} {_short(gap.mean)} higher than {best[0].label} "
            f"(between {_short(gap.low or 0.0)} and {_short(gap.high or 0.0)}, over "
            f"{gap.num_blocks} seeds)."
        )
    if len(best) > 1:
        yield (
            f"Tied means: over {standings.num_seeds} seeds the interval of the difference to "
            f"{best[0].label}, the lowest, includes 0. It does not mean that they are equal."
        )
    if standings.num_seeds < MANY_SEEDS:
        yield (
            f"{standings.num_seeds} seeds are few: intervals are wide, and only large differences "
            "can be seen."
        )


def _factor_by_factor(standings: Standings) -> Iterator[str]:
    """Yield what each varied setting did over all others."""
    for factor in standings.by_factor:
        if len(factor.standings) < 2:
            continue
        best, *others = factor.standings
        for other in others:
            gap = other.against_best
            if gap is None or not other.is_worse:
                continue
            yield (
                f"{factor.factor}: at its best, {best.name} is {_short(gap.mean)} lower than "
                f"{other.name} (between {_short(gap.low or 0.0)} and {_short(gap.high or 0.0)})."
            )
        tied = [str(other.name) for other in others if other.is_tied]
        if tied:
            names = listed([str(best.name), *tied[:_MAX_NAMED]])
            yield f"{factor.factor}: {names} cannot be told apart."


def _price(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if not standings.finished:
        return
    num_busy = sum(run.was_busy for run in trainings.runs)
    if num_busy:
        yield (
            "Times are not compared here: the machine was busy with other work during "
            f"{num_busy} of {times(len(trainings.runs), 'run')}."
        )
        return
    seconds = {
        setting.label: value
        for setting in standings.finished
        if (value := setting.medians.get("seconds_per_step"))
    }
    if not seconds:
        return
    quickest, slowest = (end(seconds, key=lambda label: seconds[label]) for end in (min, max))
    chosen = [setting for setting in standings.best if setting.label in seconds]
    if len(chosen) > _MAX_PRICED:
        chosen = [setting for setting in chosen if setting.label in (quickest, slowest)]
    for setting in chosen:
        ratio = seconds[setting.label] / seconds[quickest]
        beside = f", {ratio:.2f} x as long as {quickest}" if ratio > _SAME_SPEED else ""
        if setting.label == quickest and len(seconds) > 1:
            beside = ", the fastest"
        yield (
            f"{setting.label}: {seconds_text(seconds[setting.label])} per step{beside}; "
            f"{seconds_text(setting.medians.get('seconds_total'))} of training, "
            f"{bytes_text(setting.medians.get('peak_memory_bytes'))} of memory at its peak, a "
            f"{bytes_text(setting.medians.get('lora_bytes'))} file."
        )


def _based_on(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if standings.measure == "final_loss":
        yield (
            "The mean training loss of the last epoch: the weakest evidence there is, because a "
            "LoRA that only memorizes its images has a low one, too."
        )
        if standings.num_validated:
            yield (
                f"{standings.num_validated} of {times(len(trainings.runs), 'run')} have a "
                "validation loss, which is used only when all have one."
            )
        return
    split = "held_out" if standings.measure == "validation_held_out" else "training"
    rows = trainings.frames.validation
    rows = rows[rows["split"] == split]
    kind = "held-out images" if split == "held_out" else "of the training images"
    yield (
        f"The validation loss after the last epoch, on {rows['image'].nunique()} {kind} at"
        f" {rows['timestep'].nunique()} noise levels, with the same noise for every run, and "
        "minus the untouched base model's own loss there: below 0 is better than the base model."
    )
    if split == "training":
        yield (
            "These images were trained on, so a LoRA that memorizes them looks good: overfitting "
            "cannot be seen."
        )
    yield "A lower loss is not always a better image. Look at the images before you choose."


def _untested(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    gaps = untested(trainings.frames, standings)
    if gaps.rates:
        yield (
            "Other learning rates. Every optimizer ran at its recipe's default, and another may "
            "win once tuned: comparisons at untuned rates are mostly comparisons of rates."
        )
    for name, words in (("base", "base models"), ("dataset", "data sets")):
        if values := gaps.fixed.get(name):
            yield f"{words.capitalize()} other than {listed(values[:3])}."
        elif name in gaps.fixed:
            yield f"Other {words}."
    if gaps.num_steps is not None:
        yield f"Shorter or longer training than {times(gaps.num_steps, 'step')}."
    if gaps.ratings:
        yield "What people see: nobody has scored the images yet."


def _named(settings: Sequence[Setting]) -> str:
    names = [setting.label for setting in settings[:_MAX_NAMED]]
    if len(settings) > _MAX_NAMED:
        names.append(f"{len(settings) - _MAX_NAMED} more settings")
    return listed(names)


def _short(value: float) -> str:
    return f"{value:.3g}"
