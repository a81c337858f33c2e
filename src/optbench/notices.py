"""What a person should know about the texts of a run before it trains."""

from __future__ import annotations

from collections.abc import Iterator

from optbench.captions import longest_forms
from optbench.contracts import Base
from optbench.options import DatasetOptions, PromptOptions
from optbench.records import Dataset

_RENDERED_TOKENS = 75


def text_notices(
    base: Base,
    dataset: Dataset,
    data: DatasetOptions,
    prompts: PromptOptions,
    *,
    max_token_length: int,
) -> Iterator[str]:
    """Yield a sentence on doubtful data, and on texts whose end the base never reads."""
    yield from dataset.notices
    captions = [text for image in dataset.images for text in longest_forms(image.caption, data)]
    listed = [text for one in prompts.prompts for text in (one.text, one.negative)]
    kinds = (
        ("captions", captions, max_token_length),
        ("prompts", listed, _RENDERED_TOKENS),
    )
    for kind, texts, limit in kinds:
        if cut := base.cut_texts(texts, max_token_length=limit):
            yield (
                f"{len(cut)} of {len(texts)} {kind} are longer than the text encoder reads "
                f"({limit} tokens); the rest of them has no effect: {cut[0][:60]}..."
            )
