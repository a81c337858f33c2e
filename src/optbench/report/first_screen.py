"""The page's first screen: the answer in images, one row per setting, the best first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.raced import is_stopped_by_race
from optbench.analysis.standings import BROKEN, DONE, Setting, Standings, Verdict
from optbench.metrics import METRICS
from optbench.records import Cell
from optbench.render.thumbnails import has_thumbnail, thumbnail_path
from optbench.report.answer import Answer
from optbench.report.charts.styles import Style, Styles
from optbench.report.goal import goal_images
from optbench.report.links import address
from optbench.report.wording import decimal_text, listed, reasons_once, seconds_text, times

_Place = tuple[str, int, int, int]  # prompt, width, height, seed

NUM_SHOWN = 6  # settings; the others are behind a button
_NUM_IMAGES = 4
_MAX_REASON = 160
_HEIGHT_PX = 610  # for goal and settings together, below the answer in a window of 900
_LARGEST_PX = 150
_LIKENESS = ("resemblance", "dino_image", "clip_image")
_OBEDIENCE = ("resistance", "clip_text")
_MARKS: Mapping[Verdict, tuple[str, str]] = {
    "lowest": ("best", "good"),
    "tied_lowest": ("tied for best", "good"),
    "tied": ("tied for best", "good"),
    "unsafe": ("failed", "bad"),
    "broken": ("broken", "bad"),
    "not_compared": ("not compared", "hint"),
}
_GAINS: Mapping[str, tuple[str, str]] = {
    "validation_objective": (
        "net gain",
        "how much lower the loss on held-out images is than the base model's, less a quarter of "
        "the forgetting: what the order rests on",
    ),
    "validation_held_out": (
        "held-out gain",
        "how much lower the loss on held-out images is than the base model's: what the order rests "
        "on",
    ),
    "validation_training": (
        "gain",
        "how much lower the loss on training images is than the base model's: what the order rests "
        "on",
    ),
    "final_loss": ("training loss", "mean of the last epoch, lower is better: weak evidence"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One image of a row, after the last epoch and before it."""

    thumb: str  # address of its small copy, after `epoch`
    image: str  # of the image itself
    pattern: str  # both, with {epoch} for the four digits of an epoch: small copy, then image
    epoch: int
    epochs: tuple[int, ...]  # with an image
    width: int
    height: int
    prompt: str
    seed: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One number of a row: a bar from 0, or a dot with its interval on the column's own scale."""

    text: str
    percent: float | None = None  # of a bar's length, or where the dot is
    low: float | None = None  # ends of the interval, in percent; None: nothing measures luck
    high: float | None = None
    is_dot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure of every row."""

    title: str
    hint: str
    better: str  # "higher is better", "lower is better"
    values: tuple[Value, ...]  # in the order of the rows
    most: str = ""  # words for the setting with the largest value, where images were measured
    goal: str = ""  # what the training images themselves have
    lead_percent: float | None = None  # of the line at the setting that leads, where there are dots


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting."""

    label: str
    style: Style
    note: str  # seeds, and which of them the images are of
    mark: str
    mark_kind: str  # good, hint or bad
    reason: str  # why it is broken or failed; nothing for others
    shots: tuple[Shot, ...]
    run: str  # that the images are of


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstScreen:
    """Everything above the page's sections."""

    answer: Answer
    by_images: str  # which settings image metrics put first; nothing where they were not measured
    notices: tuple[tuple[str, str], ...]  # words and the anchor that says more
    goal: tuple[tuple[str, int, int], ...]  # address, width, height
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    epochs: tuple[int, ...]  # of the slider
    prompts: str  # which prompts the images are of
    shot_px: int  # height of a row's images
    num_hidden: int

    @property
    def width_px(self) -> int:
        """The width of the widest row's images."""
        rows = [sum(shot.aspect for shot in row.shots) for row in self.rows]
        goal = sum(width / height for _, width, height in self.goal)
        return round(self.shot_px * max([*rows, goal])) + 4 * (_NUM_IMAGES - 1)


def first_screen(
    sweep: SweepEvidence,
    answer: Answer,
    standings: Standings,
    styles: Styles,
    report_dir: Path,
    *,
    preferred: str = "",
) -> FirstScreen:
    """Return the answer and its rows; the images' small copies must have been made.

    Args:
        sweep: Its trainings.
        answer: What the page says first.
        standings: How the settings compare.
        styles: Of runs.
        report_dir: The page's folder.
        preferred: The label of the setting that people prefer, which comes first.
    """
    runs = {run.name: run for run in sweep.runs}
    settings = [s for s in _ordered(standings, preferred) if any(name in runs for name in s.runs)]
    shots_of = _shots_of_runs(sweep, report_dir)
    rows = tuple(
        _row(
            setting,
            standings,
            [runs[name] for name in setting.runs if name in runs],
            styles,
            shots_of,
            preferred,
        )
        for setting in settings
    )
    columns = tuple(_columns(sweep, standings, settings))
    goal = tuple(goal_images(sweep, report_dir))
    num_shown = min(len(rows), NUM_SHOWN)
    num_strips = num_shown + bool(goal)
    shots = [shot for row in rows for shot in row.shots]
    return FirstScreen(
        answer=answer,
        by_images=_by_images(columns, settings),
        notices=tuple(_notices(sweep)),
        goal=goal,
        rows=rows,
        columns=columns,
        epochs=tuple(sorted({epoch for shot in shots for epoch in shot.epochs})),
        prompts=listed(list(dict.fromkeys(shot.prompt for shot in shots))),
        shot_px=min(_LARGEST_PX, _HEIGHT_PX // max(1, num_strips) - 12),
        num_hidden=len(rows) - num_shown,
    )


def _ordered(standings: Standings, preferred: str) -> list[Setting]:
    """Return all settings, the best first, those that cannot be recommended behind the others."""
    places = {setting.label: place for place, setting in enumerate(standings.settings)}
    by_mean = standings.is_comparable and not standings.is_ranked

    def key(setting: Setting) -> tuple[object, ...]:
        verdict = standings.verdict(setting)
        is_out = verdict in ("unsafe", "broken", "not_compared", "no_result")
        return (
            setting.label != preferred,
            is_out,
            not setting.outcomes,
            setting.mean if by_mean and setting.outcomes else 0.0,
            places[setting.label],
        )

    return sorted(standings.settings, key=key)


def _row(
    setting: Setting,
    standings: Standings,
    runs: Sequence[RunEvidence],
    styles: Styles,
    shots_of: Mapping[str, tuple[Shot, ...]],
    preferred: str,
) -> Row:
    """Return a row with the images of its first run that has any."""
    by_seed = sorted(runs, key=lambda run: (run.row["status"] != DONE, run.number))
    shown = next((run for run in by_seed if run.name in shots_of), by_seed[0])
    verdict = standings.verdict(setting)
    mark, kind = _MARKS.get(verdict, ("", "hint"))
    leads = not standings.is_ranked and standings.is_comparable and len(standings.finished) > 1
    if verdict == "unranked" and leads and setting is standings.lowest:
        mark = "leads"
    if setting.num_broken:
        kind = "bad"
        mark = (
            f"{setting.num_broken} of {len(setting.runs)} failed"
            if len(setting.runs) > 1
            else "failed"
        )
    elif not setting.outcomes and not setting.statuses.get(DONE):
        mark = listed([status.replace("_", " ") for status in setting.statuses])
    elif setting.num_unfinished:
        mark = mark or f"{setting.num_unfinished} of {len(setting.runs)} to come"
    if setting.label == preferred:
        mark, kind = "people's choice", "good"
    seeds = times(setting.num_seeds, "seed") if setting.outcomes else ""
    shown_seed = shown.row.get("seed")
    note = (
        f"{seeds}, images: seed {shown_seed}"
        if shown.name in shots_of and len(runs) > 1 and shown_seed is not None
        else seeds
    )
    return Row(
        label=setting.label,
        style=styles[shown.name],
        note=note,
        mark=mark,
        mark_kind=kind,
        reason=_reason(setting, runs),
        shots=shots_of.get(shown.name, ()),
        run=shown.name,
    )


def _reason(setting: Setting, runs: Sequence[RunEvidence]) -> str:
    """Return why a setting is out: once for all its seeds, cut to what a row can hold."""
    failed = [run for run in runs if run.row["status"] in BROKEN]
    of_failed = [
        f"{run.status}: {run.reason.strip().splitlines()[0]}" if run.reason.strip() else run.status
        for run in failed
    ]
    text = "; ".join(filter(None, [reasons_once(setting.broken), *dict.fromkeys(of_failed)]))
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 1].rstrip()}\u2026"


def _shots_of_runs(sweep: SweepEvidence, report_dir: Path) -> dict[str, tuple[Shot, ...]]:
    """Return by run the few images that its row shows; runs without images are not there."""
    epochs: dict[str, dict[_Place, list[int]]] = {}
    for row in sweep.frames.images.to_dict("records"):
        place = str(row["prompt"]), int(row["width"]), int(row["height"]), int(row["seed"])
        epochs.setdefault(str(row["run"]), {}).setdefault(place, []).append(int(row["epoch"]))
    shots = {
        run.name: tuple(_shots(run, epochs[run.name], report_dir))
        for run in sweep.runs
        if run.name in epochs
    }
    return {run: of_run for run, of_run in shots.items() if of_run}


def _shots(
    run: RunEvidence, epochs: Mapping[_Place, Sequence[int]], report_dir: Path
) -> Iterator[Shot]:
    """Yield images of every prompt in turn, each time of its next seed; ordered by prompt."""
    # In the order of the config; what it does not name comes last.
    by_prompt: dict[str, list[_Place]] = {prompt.name: [] for prompt in run.prompts}
    seeds = {seed: place for place, seed in enumerate(run.seeds)}
    for place in sorted(epochs, key=lambda place: (seeds.get(place[3], len(seeds)), place)):
        by_prompt.setdefault(place[0], []).append(place)
    turns = itertools.zip_longest(*by_prompt.values())
    chosen = [place for turn in turns for place in turn if place is not None][:_NUM_IMAGES]
    order = list(by_prompt)
    for name, width, height, seed in sorted(chosen, key=lambda place: order.index(place[0])):
        paths = {
            epoch: run.run.image_path(
                Cell(prompt=name, width=width, height=height, seed=seed, epoch=epoch)
            )
            for epoch in sorted(epochs[name, width, height, seed])
        }
        known = [epoch for epoch, path in paths.items() if has_thumbnail(path)]
        if not known:
            continue
        last = paths[known[-1]]
        thumb, image = (address(path, report_dir) for path in (thumbnail_path(last), last))
        folder = f"/{last.parent.name}/"
        yield Shot(
            thumb=thumb,
            image=image,
            pattern=" ".join(a.replace(folder, "/epoch-{epoch}/") for a in (thumb, image)),
            epoch=known[-1],
            epochs=tuple(known),
            width=width,
            height=height,
            prompt=name,
            seed=seed,
        )


def _columns(
    sweep: SweepEvidence, standings: Standings, settings: Sequence[Setting]
) -> Iterator[Column]:
    """Yield the measures that at least one setting has."""
    runs_of = {setting.label: setting.runs for setting in settings}
    metrics = analysis.metrics_of_settings(sweep.frames, runs_of)
    goals = _of_training_images(sweep)
    for title, names, most in (
        ("likeness", _LIKENESS, "is most like the training images"),
        ("obedience", _OBEDIENCE, "follows the prompts best"),
    ):
        name = next((n for n in names if any(n in of for of in metrics.values())), None)
        if name is not None:
            known = [metrics.get(setting.label, {}).get(name) for setting in settings]
            top = max([value for value in known if value is not None] + [goals.get(name, 0.0)])
            yield Column(
                title=title,
                hint=f"{name.replace('_', ' ')}: {METRICS[name].meaning}",
                better="higher is better",
                values=tuple(_bar(value, top, lambda value: f"{value:.2f}") for value in known),
                most=most,
                goal=f"{goals[name]:.2f}" if title == "likeness" and name in goals else "",
            )
    gain = _gain(standings, settings)
    if any(value.percent is not None for value in gain.values):
        yield gain
    if standings.measure != "final_loss":
        added = [setting.medians.get("validation_others") for setting in settings]
        if any(value is not None for value in added):
            top = max(value for value in added if value is not None)
            yield Column(
                title="forgetting",
                hint="how much the loss on other subjects rose",
                better="lower is better",
                values=tuple(
                    _bar(value, top, lambda value: decimal_text(value, 2)) for value in added
                ),
            )
    seconds = [setting.medians.get("seconds_per_step") for setting in settings]
    if any(value is not None for value in seconds):
        was_busy = any(setting.was_busy for setting in settings)
        top = max(value for value in seconds if value is not None)
        yield Column(
            title="step time" + (" *" if was_busy else ""),
            hint="median time of a training step"
            + ("; * other work ran beside, so do not compare" if was_busy else ""),
            better="lower is better",
            values=tuple(_bar(value, top, seconds_text) for value in seconds),
        )


def _by_images(columns: Sequence[Column], settings: Sequence[Setting]) -> str:
    """Return which settings image metrics put first: beside a loss, which sees no image."""
    words: dict[str, list[str]] = {}
    for column in columns:
        known = [
            (value.percent, setting.label, value.text)
            for value, setting in zip(column.values, settings, strict=True)
            if column.most and value.percent is not None and setting.outcomes
        ]
        if len(known) > 1:
            _, label, text = max(known)
            words.setdefault(label, []).append(f"{column.most} ({text})")
    if not words:
        return ""
    return f"Image metrics: {'; '.join(f'{label} {listed(of)}' for label, of in words.items())}."


def _gain(standings: Standings, settings: Sequence[Setting]) -> Column:
    """Return the measure that decides: dots, with the interval of the difference to the lead.

    A mean's own interval is wider than that of a difference, since all were measured on the same
    images; two that overlap may well differ.
    """
    title, hint = _GAINS[standings.measure]
    sign = 1.0 if standings.measure == "final_loss" else -1.0
    lead = standings.lead if standings.is_ranked else None
    spans: list[tuple[float, float | None, float | None] | None] = []
    for setting in settings:
        if not setting.outcomes:
            spans.append(None)
            continue
        standing = setting.standing
        mean = standing.mean if standing else setting.mean
        against = standing.against_best if standing else None
        low = high = None
        if lead is not None and lead.standing and against is not None and against.low is not None:
            low, high = lead.standing.mean + against.low, lead.standing.mean + (against.high or 0.0)
        spans.append((mean, low, high))
    # What is out may be far off, and would press all others into one point: it stands at the edge.
    sound = [
        span
        for setting, span in zip(settings, spans, strict=True)
        if span and not (setting.broken or setting.num_broken)
    ]
    ends = [end for span in sound or spans if span for end in span if end is not None]
    least, most = (min(ends), max(ends)) if ends else (0.0, 1.0)
    width = (most - least) or 1.0

    def percent(value: float) -> float:
        # Lower values of a loss are better, and better is to the right.
        return min(98.0, max(2.0, 96.0 - 92.0 * (value - least) / width))

    values = []
    for span in spans:
        if span is None:
            values.append(Value(text=""))
            continue
        mean, low, high = span
        values.append(
            Value(
                text=decimal_text(sign * mean, 3),
                percent=percent(mean),
                low=None if high is None else percent(high),
                high=None if low is None else percent(low),
                is_dot=True,
            )
        )
    better = "lower is better" if sign > 0 else "higher is better"
    interval = (
        ". The line is the 95 % interval of the difference to the setting that leads: where it "
        "reaches the upright line, the two are tied"
        if lead is not None
        else ""
    )
    return Column(
        title=title,
        hint=f"{hint}{interval}",
        better=better,
        values=tuple(values),
        lead_percent=percent(lead.standing.mean) if lead and lead.standing else None,
    )


def _bar(value: float | None, top: float, text_of: Callable[[float], str]) -> Value:
    if value is None:
        return Value(text="")
    return Value(text=text_of(value), percent=max(0.0, 100 * value / top) if top > 0 else 0.0)


def _of_training_images(sweep: SweepEvidence) -> dict[str, float]:
    """Return what the training images themselves have of every metric that knows it."""
    table = analysis.last_metrics(analysis.metric_table(sweep.frames))
    means = table.groupby("metric")["training_value"].mean().dropna()
    return {str(name): float(value) for name, value in means.items()}


def _notices(sweep: SweepEvidence) -> Iterator[tuple[str, str]]:
    """Yield what the reader must know beside the verdict: what is missing, and where it is said."""
    failed = sum(run.row["status"] in BROKEN for run in sweep.runs)
    to_come = sum(
        run.row["status"] not in (DONE, *BROKEN) and not is_stopped_by_race(run.row)
        for run in sweep.runs
    )
    if to_come:
        yield f"{to_come} of {times(len(sweep.runs), 'run')} to come", "undone"
    if failed:
        yield f"{times(failed, 'run')} failed", "undone"
    if sweep.frames.problems:
        yield f"{times(len(sweep.frames.problems), 'file')} could not be read", "problems"
