"""Warnings about captions and prompts before a run trains: cut, weighted, or without a font."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optbench.contracts import BaseModel, TextOptions
from optbench.data.captions import longest_forms
from optbench.errors import shorten
from optbench.models.text.prompt_grammar import emphasized, is_balanced
from optbench.records import Dataset
from optbench.render.text import without_font
from optbench.schema import DatasetOptions, PromptOptions

_SHOWN = 60  # letters of a text


def text_notices(
    base: BaseModel,
    dataset: Dataset,
    data: DatasetOptions,
    prompts: PromptOptions,
    *,
    text_options: TextOptions,
) -> Iterator[str]:
    """Yield a sentence on doubtful data, and on texts whose end the base never reads."""
    yield from dataset.notices
    yield from cut_notices(dataset, data, base.num_tokens, max_tokens=text_options.max_tokens)
    listed = [text for prompt in prompts.prompts for text in (prompt.text, prompt.negative)]
    yield from grammar_notices(listed)
    yield from font_notices([prompt.text for prompt in prompts.prompts])


def cut_notices(
    dataset: Dataset,
    data: DatasetOptions,
    num_tokens: Callable[[Sequence[str]], Sequence[int]],
    *,
    max_tokens: int,
) -> Iterator[str]:
    """Yield a sentence on captions whose end the base never reads, with each one's length.

    Args:
        dataset: The images.
        data: How captions are completed; of those that vary, the longest form counts.
        num_tokens: What counts the tokens of captions.
        max_tokens: How many of them are read.
    """
    names, texts = [], []
    for image in dataset.images:
        forms = longest_forms(image.caption, data)
        names += [image.path.name] * len(forms)
        texts += forms
    longest: dict[str, int] = {}
    for name, number in zip(names, num_tokens(texts), strict=True):
        if number > max_tokens:
            longest[name] = max(number, longest.get(name, 0))
    if longest:
        shown = shorten([f"{name} ({number} tokens)" for name, number in longest.items()])
        yield (
            f"{len(longest)} of {len(dataset.images)} captions are longer than the text encoder "
            f"reads ({max_tokens} tokens), so that their end has no effect: {shown}"
        )


def font_notices(texts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on letters that sheets can only show as boxes."""
    if letters := without_font(texts):
        yield (
            f"no font of this machine has {len(letters)} of the letters that sheets print "
            f"({letters[:_SHOWN]}), so they become boxes; install one, for instance "
            "fonts-noto-cjk or fonts-wqy-microhei"
        )


def grammar_notices(prompts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on what A1111's grammar makes of prompts, so that nobody wonders."""
    weighted = [text for text in prompts if emphasized(text)]
    if weighted:
        shown = ", ".join(emphasized(weighted[0]))[:_SHOWN]
        yield (
            f"{len(weighted)} of {len(prompts)} prompts weight words by brackets, as in A1111 "
            f"({shown}); for brackets that are letters write \\( and \\)"
        )
    if odd := [text for text in prompts if not is_balanced(text)]:
        yield (
            f"{len(odd)} of {len(prompts)} prompts have a bracket without its partner, which "
            f"weights all that follows, or is a letter: {odd[0][:_SHOWN]}"
        )
