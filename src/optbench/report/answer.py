"""Put the conclusions of a sweep into the page's first words: what to use, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optbench import analysis
from optbench.analysis.cautions import cautions
from optbench.analysis.comparisons import Unlike
from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.next_steps import untested, untuned
from optbench.analysis.raced import is_stopped_by_race
from optbench.analysis.rates import RATES
from optbench.analysis.standings import BROKEN, DONE, Setting, Standings
from optbench.analysis.stats import Interval, Strength
from optbench.analysis.superseded import superseded
from optbench.report.advice import Advice, advise
from optbench.report.cautions import caution_sentence, superseded_sentences
from optbench.report.image_flags import flagged_leaders, warning
from optbench.report.rates import rank_trap_sentence, rate_sources_sentence
from optbench.report.wording import (
    bytes_text,
    decimal_text,
    listed,
    reasons_once,
    seconds_text,
    times,
)

_MAX_NAMED = 6
_MAX_PRICED = 3
_SAME_SPEED = 1.05  # a median of one machine says no more
_MAX_REASONS = 3
_MAX_TITLE = 60  # letters
_MEASURES: Mapping[str, str] = {
    "validation_objective": "held-out loss plus a quarter of the forgetting",
    "validation_held_out": "validation loss on held-out images",
    "validation_training": "validation loss on training images",
    "final_loss": "training loss",
}
_SHORT_MEASURES: Mapping[str, str] = {
    "validation_objective": "held-out loss and forgetting",
    "validation_held_out": "held-out loss",
    "validation_training": "validation loss",
    "final_loss": "training loss",
}
_COSTS: tuple[tuple[str, Callable[[float | None], str], str], ...] = (
    ("seconds_total", seconds_text, "of training"),
    ("peak_memory_bytes", bytes_text, "of GPU memory at its peak"),
    ("optimizer_state_bytes", bytes_text, "of optimizer state"),
    ("lora_bytes", bytes_text, "as a file"),
)
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
class Badge:
    """How much a verdict is worth, in two or three words."""

    text: str
    kind: Literal["good", "hint", "bad"]  # settled; open; nothing to recommend


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer in plain words; every list may be empty."""

    verdict: str  # a few words without a full stop
    badge: Badge
    basis: str  # what the verdict rests on, in a sentence or two; may be empty
    sure: tuple[str, ...]
    price: tuple[str, ...]
    based_on: tuple[str, ...]
    untested: tuple[str, ...]
    next_steps: tuple[Advice, ...]

    @property
    def headline(self) -> str:
        """Verdict and basis as sentences."""
        return f"{self.verdict}. {self.basis}".rstrip()


def make_answer(
    sweep: SweepEvidence,
    standings: Standings,
    flagged: Mapping[str, str],
    judged: Judgement | None = None,
) -> Answer | None:
    """Return the answer to a sweep's question, or None where there is no run at all.

    Args:
        sweep: What lies in the folder.
        standings: How its settings compare by their losses.
        flagged: What is wrong with settings' images (`image_flags.by_setting`); a loss sees nothing
            of it.
        judged: What people prefer (`people_prefer`).
    """
    if not sweep.runs:
        return None
    trainings = sweep.only(analysis.TRAINING)
    if not trainings.runs:
        num_done = sum(run.row["status"] == DONE for run in sweep.runs)
        return Answer(
            verdict=f"{num_done} of {times(len(sweep.runs), 'LoRA file')} resized",
            badge=Badge(text="no ranking", kind="hint"),
            basis="The table below shows what each keeps of its original, and for how many bytes.",
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
        is_over = all(run.row["status"] in BROKEN for run in trainings.runs)
        return Answer(
            verdict="No run finished" if is_over else "No run has finished yet",
            badge=Badge(
                text="no result" if is_over else "too early", kind="bad" if is_over else "hint"
            ),
            basis=f"{statuses[0].upper()}{statuses[1:]}."
            + ("" if is_over else " The first comparison comes with the first finished runs."),
            sure=(),
            price=price,
            based_on=(),
            untested=(),
            next_steps=advice,
        )
    chosen = standings.chosen
    ordered = standings.ordered if standings.is_comparable else ()
    verdict, badge, basis = _with_votes(standings, judged)
    return Answer(
        verdict=verdict,
        badge=badge,
        basis=f"{basis}{_out_of_reach(standings)}{warning(chosen, flagged)}".strip(),
        sure=(
            *flagged_leaders(chosen, ordered, flagged),
            *_sureness(trainings, standings, {run.name: run.label for run in trainings.runs}),
        ),
        price=price,
        based_on=tuple(_based_on(trainings, standings)),
        untested=tuple(_untested(trainings, standings)),
        next_steps=advice,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The setting that people's votes put first."""

    label: str
    words: str  # how surely


def people_prefer(strengths: Sequence[Strength]) -> Judgement | None:
    """Return what people prefer, None where no setting is shown to win against the average one."""
    first = max(strengths, key=lambda strength: strength.strength, default=None)
    if first is None or not first.is_preferred:
        return None
    share = f"{100 * first.win_share:.0f} % of votes against the average setting"
    trainings = "one training" if first.num_runs < 2 else f"{first.num_runs} trainings"
    return Judgement(
        label=str(first.name),
        words=f"{share}, {times(first.num_votes, 'vote')} on {trainings} of it",
    )


def _with_votes(standings: Standings, judged: Judgement | None) -> tuple[str, Badge, str]:
    """Return verdict, badge and basis; what people saw comes before what a loss says."""
    verdict, badge, basis = _by_loss(standings)
    if judged is None:
        return verdict, badge, basis
    preferred, by_loss = f"People prefer {judged.label}", f"{verdict}. {basis}"
    votes = f"{judged.words[0].upper()}{judged.words[1:]}."
    if not standings.is_ranked:
        return preferred, Badge(text="by votes", kind="good"), f"{votes} By loss: {by_loss}"
    if judged.label not in [setting.label for setting in standings.best]:
        disagree = Badge(text="votes and loss disagree", kind="hint")
        return f"{preferred}, the loss does not", disagree, f"{votes} By loss: {by_loss}"
    agrees = len(standings.best) == 1
    return (
        f"{preferred}, and {'so does the loss' if agrees else 'the loss does not disagree'}",
        Badge(text="votes and loss agree" if agrees else "by votes", kind="good"),
        f"{votes} By loss: {by_loss}",
    )


def _by_loss(standings: Standings) -> tuple[str, Badge, str]:
    best, measure = standings.best, _MEASURES[standings.measure]
    match standings.conclusion:
        case "all_broken":
            is_one = len(standings.finished) == 1
            return (
                "The only setting is broken" if is_one else "Every setting is broken",
                Badge(text="nothing to recommend", kind="bad"),
                "Lower learning rates are worth a try: lr_mult=0.3.",
            )
        case "one_setting":
            is_alone = len(standings.settings) == 1
            return (
                f"{'One setting' if is_alone else f'Only {_named(best)}'} has finished",
                Badge(text="nothing to compare", kind="hint"),
                _learned(standings),
            )
        case "not_comparable":
            loss = "training" if standings.measure == "final_loss" else "validation"
            return (
                f"No ranking: the {loss} losses are not comparable",
                Badge(text="not comparable", kind="hint"),
                _sentence(why_unlike(standings.unlike)),
            )
        case "one_seed":
            usable = [setting for setting in standings.ordered if not _is_out(setting)]
            lowest, *others = usable or [standings.lowest]
            gap = ""
            if others:
                below = others[0].mean - lowest.mean
                where = f"{_short(below)} below" if abs(below) > 1e-7 else "level with"
                gap = f", {where} {others[0].label}"
            is_single = all(setting.num_seeds == 1 for setting in standings.finished)
            seeds = "one seed per setting" if is_single else "too few seeds"
            return (
                f"No winner yet: {lowest.label} leads, with {seeds}",
                Badge(text="hint only", kind="hint"),
                f"Lowest {measure}{gap}. With {seeds}, even equal settings would show a leader.",
            )
        case "one_left":
            others = [setting for setting in standings.finished if setting is not standings.lowest]
            why = "a failed run" if all(s.num_broken for s in others) else "no comparable result"
            return (
                f"Only {standings.lowest.label} is left: every other setting has {why}",
                Badge(text="hint only", kind="hint"),
                "",
            )
        case "clear":
            gap = _gap(standings)
            by = _SHORT_MEASURES[standings.measure]
            return (
                f"{best[0].label} is best{_of_usable(standings)} by {by}",
                _badge_of_clear(standings),
                f"Lowest {measure}{f', {gap}' if gap else ''}.{_condition(standings)}",
            )
    smallest = standings.smallest_difference()
    seen = "" if smallest is None else f" A gap of {_rounded(smallest)} would have shown."
    gap = _gap(standings)
    if standings.conclusion == "all_tied":
        return (
            f"No winner: {_several(best, standings)} are tied",
            Badge(text="tied", kind="hint"),
            f"Their {measure} does not separate them.{seen}{_condition(standings)}",
        )
    return (
        f"{_several(best, standings)} are tied for best{_of_usable(standings)}",
        Badge(text="tied", kind="hint"),
        f"Lowest {measure}{f', {gap}' if gap else ''}.{seen}{_condition(standings)}",
    )


def _badge_of_clear(standings: Standings) -> Badge:
    if standings.measure == "final_loss":
        return Badge(text="weak: training loss only", kind="hint")
    if len({setting.recipe for setting in standings.finished}) > 1 and untuned(standings):
        return Badge(text="clear, at untuned rates", kind="good")
    return Badge(text="clear", kind="good")


def _is_out(setting: Setting) -> bool:
    return bool(setting.broken or setting.num_broken)


def _lower_but_out(standings: Standings) -> list[Setting]:
    """Return the settings that ended lower than what is recommended, and never are."""
    leads = standings.chosen
    if not leads or not standings.is_comparable:
        return []
    mean = min(setting.mean for setting in leads)
    return [s for s in standings.finished if _is_out(s) and s.mean < mean]


def _of_usable(standings: Standings) -> str:
    """Return words that keep "best" true where what ended lower cannot be recommended."""
    return " of those without a failure" if _lower_but_out(standings) else ""


def _out_of_reach(standings: Standings) -> str:
    """Return a sentence that names what ended lower and why it is not recommended; or nothing."""
    lower = _lower_but_out(standings)
    if not lower:
        return ""
    reasons = [
        f"{setting.label} ({setting.num_broken} of {times(len(setting.runs), 'run')} failed)"
        if setting.num_broken
        else f"{setting.label} (broken)"
        for setting in lower[:_MAX_REASONS]
    ]
    if len(lower) > _MAX_REASONS:
        reasons.append(f"{len(lower) - _MAX_REASONS} more")
    return f" Lower but not recommended: {listed(reasons)}."


def _learned(standings: Standings) -> str:
    """Return what the only finished setting has learned, as far as a validation loss says it."""
    mean = standings.finished[0].mean
    if standings.measure == "final_loss":
        return f"Its {_MEASURES['final_loss']} ended at {_short(mean)}."
    side = "below" if mean < 0 else "above"
    return f"Its {_MEASURES[standings.measure]} is {_short(abs(mean))} {side} the base model's."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" if text else ""


def _gap(standings: Standings) -> str:
    """Return by how much the lead is below the first setting that is worse."""
    worse = standings.closest_worse
    against = worse.standing.against_best if worse and worse.standing else None
    if worse is None or against is None:
        return ""
    return f"{_interval(against)} below {worse.label}, the next"


def _condition(standings: Standings) -> str:
    recipes = {setting.recipe for setting in standings.finished}
    rates = untuned(standings)
    if len(recipes) < 2 or not rates:
        return ""
    if {*rates} == recipes:
        return " Every optimizer ran at one rate, its untuned default."
    return f" {listed(rates)} ran at one rate, untuned."


def why_unlike(kinds: Sequence[Unlike]) -> str:
    """Return why losses do not compare, and what would make them; nothing where they do."""
    if not kinds:
        return ""
    why = listed([_UNLIKE[name][0] for name in kinds])
    overrides = {_UNLIKE[name][1] for name in kinds} - {""}
    if "validation" in kinds:
        return f"{why}. The same command measures them alike; nothing is trained again."
    if "base" in kinds or not overrides:
        return f"{why}. Compare the images."
    # A folder of held-out images serves every case; the shorter override only some.
    return f"{why}. A validation loss compares them: {max(overrides)}."


def _sureness(
    trainings: SweepEvidence, standings: Standings, labels: Mapping[str, str]
) -> Iterator[str]:
    finished = standings.finished
    if standings.is_comparable and finished:
        yield from _scale(trainings, standings)
    if standings.model is not None and standings.deviation is not None:
        yield _luck(standings)
    elif len(finished) > 1 and standings.is_comparable:
        yield (
            f"One seed per setting: even if all {len(finished)} were equally good, one would come "
            "first."
        )
    if len(standings.best) > 1 and standings.is_ranked:
        yield (
            f"Tied means that {times(standings.num_seeds, 'seed')} cannot separate a setting from "
            f"{standings.best[0].label}, the lowest; not that they are equal."
        )
    if len(finished) > 1 and len(standings.factors) > 1:
        yield from _factor_by_factor(standings)
    unlike = [s for s in finished if s.standing is None and not s.num_broken]
    if unlike and standings.is_comparable and standings.unlike:
        yield f"Not compared: {_named(unlike)}, because {why_unlike(standings.unlike)}"
    for setting in [setting for setting in standings.settings if setting.broken][:_MAX_NAMED]:
        yield (
            f"{setting.label} is broken: {reasons_once(setting.broken)}. It stays in the tables "
            "and is never recommended."
        )
    yield from _left_out(trainings, standings)
    stale = superseded(trainings.rows)
    yield from superseded_sentences(stale, labels, len(trainings.runs))
    for caution in cautions(trainings.rows):
        yield caution_sentence(caution, labels)


def _scale(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    """Yield how far the lowest setting is from the base model, and gain and forgetting."""
    if standings.measure == "final_loss":
        return
    lowest = standings.lead or standings.lowest
    if standings.measure == "validation_objective":
        gain, forgetting = (lowest.medians.get(f"validation_{n}") for n in ("held_out", "others"))
        if gain is not None and forgetting is not None:
            yield (
                f"{lowest.label} gains {_short(-gain)} on held-out images"
                f"{_share(trainings, 'held_out', gain)} and "
                f"{'adds' if forgetting >= 0 else 'takes'} {_short(abs(forgetting))} "
                f"{'to' if forgetting >= 0 else 'from'} the loss on other subjects (forgetting)."
            )
        return
    mean = lowest.mean
    if mean >= 0:
        yield (
            f"Nothing here is better than the untouched base model: the lowest, {lowest.label}, "
            f"is {_short(mean)} above it. Too little was learned, or too much was broken."
        )
        return
    split = standings.measure.removeprefix("validation_")
    name = "It" if len(standings.settings) == 1 else f"The lowest, {lowest.label},"
    yield (
        f"{name} is {_short(-mean)} below the untouched base model{_share(trainings, split, mean)}."
    )


def _share(trainings: SweepEvidence, split: str, difference: float) -> str:
    """Return how much of the base model's own loss a difference is."""
    rows = trainings.frames.validation
    base = rows.loc[rows["split"] == split, "base_loss"].mean() if len(rows) else 0.0
    share = 100 * abs(difference) / base if base > 0 else 0.0
    return f" ({share:.0f} % of the base model's loss there)" if base > 0 else ""


def _luck(standings: Standings) -> str:
    images = (
        f"{times(standings.num_seeds, 'seed')} and {standings.num_images} images, as a sample of "
        "others like them"
        if standings.num_images
        else f"{times(standings.num_seeds, 'seed')}; they speak of these images alone"
    )
    smallest = standings.smallest_difference()
    seen = (
        ""
        if smallest is None
        else f" Gaps of {_rounded(smallest)} or more show in most sweeps like this one."
    )
    return (
        f"Changing only the seed moves one run by about {_rounded(standings.deviation or 0.0)} "
        "(standard deviation, without what a seed does to all settings alike)."
        f"{seen} All intervals hold at once with 95 %, over {images}."
    )


def _factor_by_factor(standings: Standings) -> Iterator[str]:
    """Yield what each varied setting did, every value of it at the best of all others."""
    for factor in standings.by_factor:
        if len(factor.standings) < 2 or (standings.raced and factor.factor in RATES):
            continue  # rates of a race were tuned, and nobody asked which is best for all
        best, *others = factor.standings
        for other in others:
            gap = other.against_best
            if gap is None or not other.is_worse:
                continue
            tried = [factor.num_tried[str(value.name)] for value in (best, other)]
            unequal = (
                f"; best of {tried[0]} against best of {tried[1]}" if len({*tried}) > 1 else ""
            )
            yield (
                f"{factor.factor}: at its best, {best.name} is {_interval(gap)} below "
                f"{other.name}{unequal}."
            )
        tied = [other for other in others if other.is_tied and other.against_best]
        if tied:
            ends = [
                abs(end)
                for other in tied
                if (gap := other.against_best) is not None
                for end in (gap.low, gap.high)
                if end is not None
            ]
            names = listed([str(best.name), *(str(other.name) for other in tied[:_MAX_NAMED])])
            yield (
                f"{factor.factor}: {names} are tied; they differ by less than "
                f"{_rounded(max(ends))}."
            )


def _left_out(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    unfinished = [
        run
        for run in trainings.runs
        if run.row["status"] not in (DONE, *BROKEN) and not is_stopped_by_race(run.row)
    ]
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
        yield f"Failed: {names}{more}. A setting that fails with one seed is a risk."


def _price(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if not standings.finished:
        return
    num_busy = sum(run.was_busy for run in trainings.runs)
    if num_busy:
        yield (
            f"Timings are unreliable: other work ran beside {num_busy} of "
            f"{times(len(trainings.runs), 'run')}, so they are not compared."
        )
        return
    seconds = {
        setting.label: value
        for setting in standings.finished
        if (value := setting.medians.get("seconds_per_step"))
    }
    if not seconds:
        return
    quickest = min(seconds, key=lambda label: seconds[label])
    for setting in [s for s in standings.chosen if s.label in seconds][:_MAX_PRICED]:
        ratio = seconds[setting.label] / seconds[quickest]
        beside = f", {ratio:.2f} x as long as {quickest}" if ratio > _SAME_SPEED else ""
        # A number that is unknown is left out, and not put into words as a dash.
        costs = [f"{seconds_text(seconds[setting.label])} per step{beside}"]
        for name, text_of, words in _COSTS:
            # Without a GPU it is the memory of a process that may have made all runs.
            is_known = name != "peak_memory_bytes" or setting.has_gpu
            if is_known and (value := setting.medians.get(name)) is not None:
                costs.append(f"{text_of(value)} {words}")
        yield f"{setting.label}: {', '.join(costs)}."


def _based_on(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    if standings.measure == "final_loss":
        yield (
            "Only the training loss of the last epoch. Weak: memorizing the images lowers it too."
        )
        if standings.num_validated:
            yield (
                f"{standings.num_validated} of {times(len(trainings.runs), 'run')} have a "
                "validation loss, which decides where more than half of the settings have one."
            )
        return
    split = "training" if standings.measure == "validation_training" else "held_out"
    rows = trainings.frames.validation
    rows = rows[rows["split"] == split]
    kind = "held-out images" if split == "held_out" else "of the training images"
    yield (
        f"The validation loss after the last epoch, on {rows['image'].nunique()} {kind} at"
        f" {rows['timestep'].nunique()} noise levels, with the same noise for every run, and "
        "minus the untouched base model's own loss there: below 0 fits these images better."
    )
    if standings.measure == "validation_objective":
        others = trainings.frames.validation
        num_others = others.loc[others["split"] == "others", "image"].nunique()
        yield (
            f"Forgetting is the loss added on {num_others} images of other subjects. A quarter of "
            "it counts beside the gain."
        )
        if set(trainings.rows["base"]) == {"tiny"}:
            share, low, high = analysis.ORDERED_AS_THE_EYE[standings.measure]
            yield (
                f"On this base model that ordered {share:.0%} ({low:.0%} to {high:.0%}) of pairs "
                "of 24 LoRAs as one rater did by eye, without knowing which was which: the author, "
                "a model (docs/embedded-base.md)."
            )
    if split == "training":
        yield (
            "These images were trained on, so a LoRA that memorizes them looks good: overfitting "
            "cannot be seen."
        )
    yield (
        "The loss does not judge obedience: beyond a point, a lower loss means prompts followed "
        "less (docs/embedded-base.md). Look at the images before you choose."
    )


def _untested(trainings: SweepEvidence, standings: Standings) -> Iterator[str]:
    gaps = untested(trainings.frames, standings)
    if gaps.rates:
        every = {setting.recipe for setting in standings.finished} == {*gaps.rates}
        who = "every optimizer" if every and len(gaps.rates) > 1 else listed(gaps.rates)
        yield (
            f"Other learning rates: {who} ran at one. Without tuning you mostly compare learning "
            "rates."
        )
    if len(bases := gaps.fixed.get("base", ())) == 1:
        sources: dict[str, set[str]] = {}
        for setting in standings.settings:
            sources.setdefault(setting.recipe, set()).add(setting.rate_source)
        if sentence := rate_sources_sentence(sources, bases[0]):
            yield sentence
    if gaps.trap is not None:
        yield rank_trap_sentence(gaps.trap)
    for name, words in (("base", "base models"), ("dataset", "data sets")):
        if values := gaps.fixed.get(name):
            yield f"{words.capitalize()} other than {listed(values[:3])}."
        elif name in gaps.fixed:
            yield f"Other {words}."
    if gaps.num_steps is not None:
        yield f"Shorter or longer training than {times(gaps.num_steps, 'step')}."
    if gaps.schedules:
        yield f"Schedules other than {listed(gaps.schedules)}."
    if gaps.ratings:
        yield "Anyone's opinion: nobody has scored the images yet."


def _named(settings: Sequence[Setting]) -> str:
    names = [setting.label for setting in settings[:_MAX_NAMED]]
    if len(settings) > _MAX_NAMED:
        names.append(f"{len(settings) - _MAX_NAMED} more settings")
    return listed(names)


def _several(settings: Sequence[Setting], standings: Standings) -> str:
    """Return the names of several settings, or how many they are where names fill no one line."""
    names = listed([setting.label for setting in settings])
    if len(names) <= _MAX_TITLE:
        return names
    num, num_compared = len(settings), len(standings.compared)
    return f"all {num} settings" if num == num_compared else f"{num} of {num_compared} settings"


def _short(value: float) -> str:
    return decimal_text(value, 3)


def _rounded(value: float) -> str:
    return decimal_text(value, 2)


def _interval(gap: Interval) -> str:
    """Return a difference with its interval; both are above 0 where the other is worse."""
    if gap.low is None or gap.high is None:
        return _short(gap.mean)
    return f"{_short(gap.mean)} ({_short(gap.low)} to {_short(gap.high)})"
