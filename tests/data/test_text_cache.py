"""Captions of frozen text encoders are encoded once, alone, and the training cannot tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optbench.contracts import Conditioning
from optbench.data import text_cache
from optbench.data.text_cache import TextCache
from optbench.models.text.clip import ClipTextOptions
from optbench.schema import Attention
from tests.builders.small_training import (
    ADAMW,
    SmallBase,
    copies_of,
    make_network,
    make_optimizer,
    six_pictures,
    train_one,
)


class Counting(SmallBase):
    """Remembers which captions it was asked for, and whether with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.captions: list[list[str]] = []

    def encode_captions(self, captions: Any, options: Any) -> Any:
        self.captions.append(list(captions))
        return super().encode_captions(captions, options)


def encode(
    cache: TextCache, captions: list[str], attention: Attention = "sdpa", **options: Any
) -> Conditioning:
    return cache.encode(captions, ClipTextOptions(**options), attention=attention)


def test_a_caption_is_encoded_once_and_stacked_as_a_batch_wants_it() -> None:
    base = Counting()
    cache = TextCache(base)
    found = encode(cache, ["a", "b", "a"])["states_BE"]
    again = encode(cache, ["b", "a"])["states_BE"]
    assert base.captions == [["a"], ["b"]]
    assert torch.equal(again, found[[1, 0]])
    assert torch.equal(found[0], found[2])
    expected = SmallBase().encode_captions(["a", "b"], ClipTextOptions())
    torch.testing.assert_close(found[:2], expected["states_BE"])
    assert base.asked == [(False, 1)] * 2


@pytest.mark.parametrize(
    "change",
    [{"clip_skip": 2}, {"max_token_length": 150}, {"attention": "eager"}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_answer_is_asked_anew(change: dict[str, Any]) -> None:
    base = Counting()
    cache = TextCache(base)
    encode(cache, ["a"])
    encode(cache, ["a"], **change)
    assert base.captions == [["a"], ["a"]]


def test_the_longest_unused_captions_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        text_cache, "_MAX_BYTES", 2 * (4 * 4 + 1)
    )  # two answers of 4 floats, and a letter
    base = Counting()
    cache = TextCache(base)
    for caption in ("a", "b", "a", "c", "a", "b"):
        encode(cache, [caption])
    assert base.captions == [["a"], ["b"], ["c"], ["b"]]


@pytest.mark.parametrize("is_trained", [False, True])
def test_only_frozen_encoders_are_remembered(is_trained: bool) -> None:
    base = Counting()
    lora = make_network(base, filled=False, train_text_encoder=is_trained)
    train_one(base, lora, make_optimizer(lora, ADAMW), six_pictures, epochs=2)
    distinct = {caption for captions in base.captions for caption in captions}
    if is_trained:
        assert sum(map(len, base.captions)) == 12
    else:
        assert sorted(base.captions) == [[caption] for caption in sorted(distinct)]


def test_a_training_is_the_same_whether_they_were_remembered() -> None:
    first, fresh = Counting(), Counting()
    weights = []
    caches = {base: TextCache(base) for base in (first, fresh)}
    for base in (first, first, fresh):
        lora = make_network(base, filled=False, train_text_encoder=False)
        train_one(base, lora, make_optimizer(lora, ADAMW), six_pictures, captions=caches[base])
        weights.append(copies_of(lora))
    assert all(torch.equal(one, two) for one, two in zip(weights[0], weights[1], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(weights[1], weights[2], strict=True))
