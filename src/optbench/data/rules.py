"""Validate the settings of captions, and word what is wrong with a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from optbench.data.captions import rearranges
from optbench.errors import Problem, shorten
from optbench.schema import DatasetOptions

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"}
_COMMA = "',' (in quotes: \"dataset.caption_separator=','\")"


def check_captions(options: DatasetOptions) -> Iterator[Problem]:
    """Yield everything impossible or without effect, as far as no caption must be read for it."""
    suffix = options.caption_extension
    if not re.fullmatch(r"\.[^/\\]+", suffix) or suffix.lower() in IMAGE_SUFFIXES:
        expected = "a dot and the letters that captions' names end in"
        yield setting_problem("caption_extension", repr(suffix), expected, ".txt")
    yield from _without_effect(options)


def check_captions_use(options: DatasetOptions, captions: Sequence[str]) -> Iterator[Problem]:
    """Yield the settings that none of the captions gives anything to do."""
    texts = [*captions, options.caption_prefix or "", options.caption_suffix or ""]
    if options.enable_wildcard and not any("\n" in text or "{" in text for text in texts):
        expected = "false, for no caption has several lines or a choice like {a|b}"
        yield setting_problem("enable_wildcard", "true", expected, "false")
    for name in ("keep_tokens_separator", "secondary_separator"):
        mark = getattr(options, name)
        if mark and not any(mark in text for text in texts):
            expected = "null, for no caption holds it"
            yield setting_problem(name, repr(mark), expected, "null")


def check_captions_for_length(options: DatasetOptions, *, num_epochs: int) -> list[Problem]:
    """Return a problem if the training is over before captions are dropped for the first time."""
    every = options.caption_dropout_every_n_epochs
    if every <= num_epochs:
        return []
    found = f"{every} while train.epochs is {num_epochs}"
    expected = "at most the number of epochs, or 0 for never"
    return [setting_problem("caption_dropout_every_n_epochs", found, expected, 0)]


def _without_effect(options: DatasetOptions) -> Iterator[Problem]:
    if not rearranges(options):
        off = "dataset.shuffle_caption is false"
        if options.keep_tokens > 0:
            expected = "0, for tags that are not shuffled or dropped all stay in place"
            yield setting_problem("keep_tokens", f"{options.keep_tokens} while {off}", expected, 0)
        if options.keep_tokens_separator is not None:
            found = f"{options.keep_tokens_separator!r} while {off}"
            expected = "null, for it would stay in the captions as it is"
            yield setting_problem("keep_tokens_separator", found, expected, "null")
        if options.caption_separator not in ("", ",") and options.secondary_separator is None:
            found = f"{options.caption_separator!r} while {off}"
            expected = "',', for captions that stay as they are are not taken apart"
            yield setting_problem("caption_separator", found, expected, _COMMA)
    if options.secondary_separator == options.caption_separator:
        found = f"{options.secondary_separator!r}, as dataset.caption_separator"
        yield setting_problem("secondary_separator", found, "another one, or null", "null")
    if options.token_warmup_step == 0 and options.token_warmup_min != 1:
        found = f"{options.token_warmup_min} while dataset.token_warmup_step is 0"
        yield setting_problem("token_warmup_min", found, "1, for no tag is held back", 1)
    if options.reg_dir is not None:
        for name in ("caption_prefix", "caption_suffix"):
            if text := getattr(options, name):
                found = f"{text!r} together with dataset.reg_dir"
                expected = "null, for kohya's trainer puts it on class images too, and a "
                expected += "trigger word there would undo them"
                yield Problem(
                    f"dataset.{name}",
                    found,
                    expected,
                    f"write it into the captions, and dataset.{name}=null",
                )


@dataclass(slots=True)
class Findings:
    """Problems and notices of one data set, collected while its files are read."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # whole sentences
    image_names: dict[str, list[str]] = field(default_factory=dict)  # by what is true of them

    def note(self, predicate: str, image_name: str) -> None:
        """Remember that a predicate, `are partly transparent`, is true of one more image."""
        self.image_names.setdefault(predicate, []).append(image_name)

    def sentences(self, *, num_images: int, kind: str = "images") -> Iterator[str]:
        """Yield the notices, and a sentence per predicate with the first few images' names."""
        yield from self.notices
        for predicate, names in self.image_names.items():
            yield f"{len(names)} of {num_images} {kind} {predicate}: {shorten(names)}"


def setting_problem(name: str, found: object, expected: str, value: object) -> Problem:
    """Return the problem of one setting, and a value that works."""
    where = f"dataset.{name}"
    return Problem(where, str(found), expected, f"write {where}={value}")
