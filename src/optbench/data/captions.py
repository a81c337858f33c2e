"""Draw an image's caption anew at every use: kohya's steps, in kohya's order.

Every draw has an address of its own, so switching one step on changes no draw of another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from optbench import rng
from optbench.schema import DatasetOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """How far the warm-up of tags is, during which they join one by one."""

    num_done: int  # updates
    num_steps: float  # updates until all tags have joined


# A text encoder reads 225 tokens, and a tag is one at least: of more tags than this, the first so
# many of their shuffled order are drawn, and the rest would never be read.
_MAX_TAGS = 10_000

Place = tuple[int, str, int]  # epoch, image's key, occurrence

# What doubled braces become while single ones are looked for; no text file holds these.
_OPEN_BRACE, _CLOSED_BRACE = "\ue000", "\ue001"


def draw_caption(
    caption: str, options: DatasetOptions, *, seed: int, place: Place, warmup: Warmup | None = None
) -> str:
    """Return the caption of one use: dropped whole, or chosen, completed and rearranged.

    In this order, as kohya's trainer: dropping the whole caption; one of its lines; prefix and
    suffix (on whichever line it is; kohya's come before the lines are parted, so that only the
    first gets the prefix); choices {a|b|c}; tags held back, shuffled and dropped; the secondary
    separator.

    Args:
        caption: The image's; its lines are alternatives.
        options: What happens to captions.
        seed: The run's.
        place: Which use of which image.
        warmup: How far the warm-up of tags is; None: over.
    """
    draw = rng.shuffler(seed, "caption", *place)
    every = options.caption_dropout_every_n_epochs
    # Drawn even at rate 0, so that a rate changes which captions go and not how others look.
    is_dropped = draw.random() < options.caption_dropout_rate
    if is_dropped or (every > 0 and place[0] % every == 0):
        return ""
    if options.enable_wildcard:
        choice = rng.shuffler(seed, "caption", *place, "wildcard")
        line = choice.choice(caption.split("\n"))
        caption = _with_choices(_completed(line, options), choice.choice)
    else:
        caption = _completed(caption, options)
    if rearranges(options):
        tag_draw = rng.shuffler(seed, "caption", *place, "tags")
        caption = _rearranged(caption, options, draw, tag_draw, warmup)
    if options.secondary_separator:
        caption = caption.replace(options.secondary_separator, options.caption_separator)
    return caption


def rearranges(options: DatasetOptions) -> bool:
    """Return whether captions are split into tags at all; if not, `keep_tokens` has no effect."""
    return (
        options.shuffle_caption
        or options.caption_tag_dropout_rate > 0
        or options.token_warmup_step > 0
    )


def longest_forms(caption: str, options: DatasetOptions) -> list[str]:
    """Return the longest text each line of a caption may become, to compare with a text encoder."""
    lines = [_completed(line, options) for line in caption.split("\n")]
    if not options.enable_wildcard:
        return lines
    return [_with_choices(line, lambda texts: max(texts, key=len)) for line in lines]


def _completed(line: str, options: DatasetOptions) -> str:
    parts = (options.caption_prefix, line, options.caption_suffix)
    return " ".join(part for part in parts if part)


def _with_choices(line: str, choose: Callable[[list[str]], str]) -> str:
    """Return the line with one text of every {a|b|c}; {{ and }} stand for single braces."""
    line = line.replace("{{", _OPEN_BRACE).replace("}}", _CLOSED_BRACE)
    # A choice goes from an opened brace to the next closed one (kohya's \{([^}]+)\}); by hand,
    # because the pattern reads to the line's end again at every brace that is never closed.
    parts, place = [], 0
    while (start := line.find("{", place)) >= 0 and (end := line.find("}", start)) >= 0:
        parts.append(line[place:start])
        content = line[start + 1 : end]
        parts.append(choose(content.split("|")) if content else "{}")
        place = end + 1
    line = "".join([*parts, line[place:]])
    return line.replace(_OPEN_BRACE, "{").replace(_CLOSED_BRACE, "}")


def _rearranged(
    caption: str,
    options: DatasetOptions,
    draw: random.Random,
    tag_draw: random.Random,
    warmup: Warmup | None,
) -> str:
    first, free, last = _split_tags(caption, options)
    if warmup is not None:
        least = options.token_warmup_min
        per_step = (len(free) - least) / warmup.num_steps
        free = free[: math.floor(warmup.num_done * per_step) + least]
    if options.shuffle_caption and len(free) > _MAX_TAGS:
        free = draw.sample(free, _MAX_TAGS)
    elif options.shuffle_caption:
        draw.shuffle(free)
    rate = options.caption_tag_dropout_rate
    if rate > 0:
        free = [tag for tag in free if tag_draw.random() >= rate]
    return ", ".join([*first, *free, *last])


def _split_tags(caption: str, options: DatasetOptions) -> tuple[list[str], list[str], list[str]]:
    """Return the tags that stay in front, those that may move, and those that stay at the end."""
    mark, separator = options.keep_tokens_separator, options.caption_separator
    if mark and mark in caption:
        front, _, rest = caption.partition(mark)
        middle, _, end = rest.partition(mark)
        first, free, last = (
            [tag.strip() for tag in part.split(separator) if tag.strip()]
            for part in (front, middle, end)
        )
        return first, free, last
    tags = [tag.strip() for tag in caption.split(separator)]
    return tags[: options.keep_tokens], tags[options.keep_tokens :], []
