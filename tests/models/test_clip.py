"""CLIP's tokenizer from the merges that ship with optbench."""

from __future__ import annotations

import random

import pytest

from optbench.models.text.clip import _vocabulary, clip_tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # As published with CLIP and its tokenizers.
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of\na CAT", [320, 1125, 539, 320, 2368]),
        ("hello world", [3306, 1002]),
        ("", []),
        ("!", [256]),
    ],
)
def test_known_texts_have_their_published_numbers(text: str, ids: list[int]) -> None:
    assert clip_tokenizer()(text).input_ids == [49406, *ids, 49407]


def test_the_vocabulary_is_bytes_then_merges_then_two_marks() -> None:
    tokens, merges = _vocabulary()
    assert len(tokens) == len(set(tokens)) == len(clip_tokenizer()) == 49408
    assert len(merges) == 49408 - 512 - 2
    assert (tokens[0], tokens[256], tokens[512], tokens[49405]) == (
        "!",
        "!</w>",
        "in",
        "jekyll</w>",
    )
    assert merges[0] == ("i", "n")
    known: set[str] = set(tokens[:512])
    for left, right in merges:
        assert left in known
        assert right in known
        known.add(left + right)


def by_hand(word: str) -> list[str]:
    """Return a lower-case ASCII word's tokens by the rule in words: the earliest merge first."""
    ranks = {pair: rank for rank, pair in enumerate(_vocabulary()[1])}
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        pairs = [
            (ranks.get(pair, len(ranks)), pair) for pair in zip(pieces, pieces[1:], strict=False)
        ]
        rank, best = min(pairs, default=(len(ranks), ("", "")))
        if rank == len(ranks):
            return pieces
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


def test_words_are_split_by_clips_rule() -> None:
    draw = random.Random(3)
    tokenizer = clip_tokenizer()
    words = ["antidisestablishmentarianism", "mirelle", "twintails", "aaaa", "zzyzx"]
    words += ["".join(draw.choices("abcdeiorstnl", k=draw.randint(1, 12))) for _ in range(15)]
    for word in words:
        found = tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids[1:-1])
        assert found == by_hand(word), word


def test_what_fills_up_is_the_end_mark_or_token_0() -> None:
    assert clip_tokenizer().pad_token_id == 49407
    openclip = clip_tokenizer(pad_token="!")
    assert openclip.pad_token_id == 0
    ids = openclip(["cat"], padding="max_length", max_length=5).input_ids[0]
    assert ids == [49406, 2368, 49407, 0, 0]
