"""Lay a plot out: its pages, and on them every image with all that decides how it looks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optbench.cli.render import wildcards
from optbench.cli.render.axes import Axis
from optbench.cli.render.sources import Source
from optbench.config import rules
from optbench.errors import Problem
from optbench.models.files.rules import check_clip_skip
from optbench.models.text import prompt_grammar
from optbench.schema import PlotOptions, Prompt
from optbench.storage import rundir

BASE = "base, no LoRA"
_MAX_IMAGES = 20_000
_WORDS = {
    "epoch": "epoch {}",
    "strength": "strength {:g}",
    "seed": "seed {}",
    "cfg_scale": "CFG {:g}",
    "steps": "{} steps",
    "clip_skip": "clip skip {}",
}
Key = tuple[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Everything that decides a plot."""

    options: PlotOptions
    sides: tuple[Axis | None, ...]  # x, y, z
    lists: wildcards.Lists
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """The settings of one image; `missing` says why it cannot be rendered."""

    loras: tuple[tuple[str, Path, float], ...]  # name, file and strength; none of strength 0
    prompt: Prompt
    seed: int
    cfg_scale: float
    steps: int
    sampler: str
    clip_skip: int | None
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One sheet: its title, and its images row by row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ImageSpec, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """An axis with its values: those given, or all there are."""

    key: Key
    values: tuple[Any, ...]

    def title(self, value: Any) -> str:
        kind = self.key[0]
        if (kind == "lora" and value is None) or (kind == "epoch" and value == 0):
            return BASE
        return _WORDS.get(kind, "{}").format(value.name if kind == "lora" else value)


def pages(plot: Plot) -> list[Page]:
    """Return every sheet of a plot, in order."""
    x, y, *others = _scales(plot)
    sheets = []
    for values in itertools.product(*(scale.values for scale in others)):
        place = {scale.key: value for scale, value in zip(others, values, strict=True)}
        titles = [
            scale.title(value)
            for scale, value in zip(others, values, strict=True)
            if len(scale.values) > 1 or scale.key[0] == "prompt"
        ]
        rows = tuple(
            (
                y.title(down),
                tuple(
                    _image_spec(plot, {**place, y.key: down, x.key: across}) for across in x.values
                ),
            )
            for down in y.values
        )
        title = ", ".join(titles) or "all"
        sheets.append(Page(title=title, columns=tuple(map(x.title, x.values)), rows=rows))
    return sheets


def check_plot(plot: Plot) -> list[Problem]:
    """Return every problem of a plot: axes that are impossible, equal, or without effect."""
    sides = [side for side in plot.sides if side is not None]
    keys = [side.key for side in sides]
    problems = [
        _problem("x, y and z", f"{side.kind} twice", "a different thing on each side", "y=null")
        for index, side in enumerate(sides)
        if side.key in keys[:index]
    ]
    for name, side in zip("xyz", plot.sides, strict=True):
        problems += [] if side is None else _check_side(name, side, plot)
    for prompt in plot.options.prompts.prompts:
        where = f"prompts.prompts.{prompt.name}"
        problems += rules.check_prompt_text(f"{where}.text", prompt.text, takes_loras=True)
        negative = prompt.negative
        problems += rules.check_prompt_text(f"{where}.negative", negative, is_negative=True)
        for text in (prompt.text, negative):
            problems += wildcards.check_lists(where, text, plot.lists)
    problems = problems or _check_loras(plot) or _check_lists_used(plot)
    if problems:
        return problems
    count = 1
    for scale in _scales(plot):
        count *= len(scale.values)
    if count > _MAX_IMAGES:
        found = f"{count} images"
        return [_problem("x, y and z", found, f"{_MAX_IMAGES} at most", "leave values out")]
    return []


def _check_side(name: str, side: Axis, plot: Plot) -> list[Problem]:
    problems = []
    prompts = plot.options.prompts.prompts
    epochs = {epoch for source in plot.sources if source.run_dir for epoch in source.files}
    if side.kind == "epoch" and not epochs:
        problems.append(_problem(name, "epoch, and no run", "a run's folder", "add runs/SWEEP/RUN"))
    known: dict[str, Sequence[Any]] = {
        "epoch": [0, *epochs],
        "prompt": [prompt.name for prompt in prompts],
        "lora": [text for source in plot.sources for text in (source.name, source.given)],
    }
    for value in side.values or ():
        if side.kind in known and value not in known[side.kind]:
            names = ", ".join(map(str, known[side.kind])) or "none"
            problems.append(_problem(name, f"{side.kind} {value}", f"one of {names}", ""))
    for prompt in prompts:
        texts = prompt.text + "\0" + prompt.negative
        if side.kind == "sr" and side.values and side.values[0] not in texts:
            found = f"{side.values[0]!r}, which prompt {prompt.name} has not"
            problems.append(_problem(name, found, "a text of every prompt, replaced by others", ""))
        if side.kind == "wildcard" and side.values and f"__{side.values[0]}__" not in texts:
            found = f"__{side.values[0]}__, which prompt {prompt.name} has not"
            problems.append(_problem(name, found, "a wildcard of every prompt", ""))
    if side.kind == "clip_skip":
        for value in side.values or ():
            problems += check_clip_skip(plot.options.base, value, where=name)
    return problems


def _check_loras(plot: Plot) -> list[Problem]:
    """Return what is wrong between prompts that name LoRAs and the LoRAs there are."""
    problems = []
    names = [source.name for source in plot.sources]
    tagged = False
    for shown in _texts(plot):
        _, tags = prompt_grammar.without_loras(shown)
        tagged = tagged or bool(tags)
        problems += [
            _problem(
                "prompts",
                f"<lora:{tag.name}:{tag.strength:g}>",
                f"one of the LoRAs given: {', '.join(names) or 'none'}",
                "add its file to the command",
            )
            for tag in tags
            if tag.name not in names
        ]
    if not tagged:
        used = [side.kind for side in plot.sides if side is not None]
        if not plot.sources and "strength" in used:
            problems.append(
                _problem("lora", "none, and strength on a side", "a LoRA", "add FILE.safetensors")
            )
        return problems
    for name, side in zip("xyz", plot.sides, strict=True):
        if side is not None and side.kind in ("lora", "strength", "epoch"):
            found = f"{side.kind}, while prompts say themselves which LoRAs they take"
            problems.append(
                _problem(name, found, "another side, or prompts without <lora:...>", f"{name}=null")
            )
    if plot.options.strength != 1:
        found = "a strength, while prompts say it themselves"
        problems.append(_problem("strength", found, "1", "strength=1"))
    return problems


def _check_lists_used(plot: Plot) -> list[Problem]:
    prompts = plot.options.prompts.prompts
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
    used = {name for text in texts for name in wildcards.named_in(text, plot.lists)}
    if plot.options.wildcards_dir is None and (idle := sorted(plot.lists.keys() - used)):
        found = f"{', '.join(idle)}, which no prompt has"
        return [_problem("wildcards", found, "wildcards that prompts have", "leave them out")]
    return []


def _texts(plot: Plot) -> Iterator[str]:
    """Yield every text that a prompt may be after what is put along the sides."""
    choices = [side.values or () for side in plot.sides if side is not None and side.kind == "sr"]
    for prompt in plot.options.prompts.prompts:
        for values in itertools.product(*choices):
            text = prompt.text
            for side, value in zip(choices, values, strict=True):
                text = text.replace(side[0], value)
            yield text


def _scales(plot: Plot) -> list[_Scale]:
    """Return x, y, z and then all that has several values and stands on no side."""
    used = {side.kind for side in plot.sides if side is not None}
    rest = [Axis(kind=kind, values=None) for kind in ("lora", "prompt", "seed") if kind not in used]
    if any(prompt_grammar.without_loras(text)[1] for text in _texts(plot)):
        rest = [axis for axis in rest if axis.kind != "lora"]
    sides = [side or Axis(kind="", values=("",)) for side in plot.sides]
    return [_scale(side, plot) for side in [*sides, *rest]]


def _scale(side: Axis, plot: Plot) -> _Scale:
    options = plot.options
    values: Sequence[Any] = side.values or ()
    if side.kind == "lora":
        chosen = [
            lora for lora in plot.sources if not values or {lora.name, lora.given} & set(values)
        ]
        has_base = any(
            other is not None and 0 in (other.values or (0,))
            for other in plot.sides
            if other is not None and other.kind in ("epoch", "strength")
        )
        is_side = side in plot.sides
        alone = not chosen or (options.with_base and is_side and not has_base)
        values = [*([None] if alone else []), *chosen]
    elif side.values is None and side.kind == "epoch":
        epochs = {epoch or 0 for lora in plot.sources if lora.run_dir for epoch in lora.files}
        values = sorted(epochs | ({0} if options.with_base else set()))
    elif side.values is None and side.kind == "prompt":
        values = [prompt.name for prompt in options.prompts.prompts]
    elif side.values is None and side.kind == "seed":
        values = options.render.seeds
    elif side.kind == "wildcard":
        return _Scale(key=side.key, values=plot.lists[values[0]])
    return _Scale(key=side.key, values=tuple(values))


def _image_spec(plot: Plot, place: Mapping[Key, Any]) -> ImageSpec:
    options, render = plot.options, plot.options.render
    plain = {kind: value for (kind, _), value in place.items() if kind not in ("sr", "wildcard")}
    seed = plain["seed"]
    prompts = {prompt.name: prompt for prompt in options.prompts.prompts}
    prompt = prompts[plain["prompt"]]
    texts = {"text": prompt.text, "negative": prompt.negative}
    for (kind, term), value in place.items():
        for name, text in texts.items():
            if kind == "sr":
                texts[name] = text.replace(term, value)
            elif kind == "wildcard":
                texts[name] = wildcards.put_in(text, {term: value})
    texts = {name: wildcards.drawn(text, plot.lists, seed=seed) for name, text in texts.items()}
    text, tags = prompt_grammar.without_loras(texts["text"])
    missing = ""
    if tags:
        by_name = {source.name: source for source in plot.sources}
        uses = [(by_name[tag.name], None, tag.strength) for tag in tags]
    else:
        source = plain.get("lora")
        uses = []
        if source is not None and plain.get("epoch") != 0:
            uses = [(source, plain.get("epoch"), plain.get("strength", options.strength))]
    loras = []
    for source, epoch, strength in uses:
        file = source.file(epoch)
        if file is None:
            assert source.run_dir is not None
            record = rundir.read_status(source.run_dir)
            reason = record.reason.strip().partition("\n")[0]
            status = record.status.replace("_", " ")
            missing = f"no epoch {epoch} ({status}{': ' if reason else ''}{reason})"
        elif strength != 0:
            loras.append((source.name if epoch is None else file.stem, file, float(strength)))
    return ImageSpec(
        loras=tuple(loras),
        prompt=replace(prompt, text=text, negative=texts["negative"]),
        seed=seed,
        cfg_scale=float(plain.get("cfg_scale", render.cfg_scale)),
        steps=plain.get("steps", render.steps),
        sampler=plain.get("sampler", render.sampler),
        clip_skip=plain.get("clip_skip", options.clip_skip),
        missing=missing,
    )


def _problem(where: str, found: str, expected: str, fix: str) -> Problem:
    return Problem(where, found, expected, fix or f"write {where} anew")
