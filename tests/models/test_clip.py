"""CLIP's tokenizer from the merges that ship with optbench."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.models.text import clip
from optbench.models.text.clip import clip_tokenizer
from optbench.models.text.tokens import (
    MAX_CAPTION_LETTERS,
    cleaned,
    is_repaired,
    token_counter,
    vocabulary,
)
from tests.builders.random_base import base_options


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
    tokens, merges = vocabulary()
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
    ranks = {pair: rank for rank, pair in enumerate(vocabulary()[1])}
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


# Texts and their ids in the environment that kohya's trainer asks for (sd-scripts 48d368fa):
# CLIPTokenizer of transformers 4.54.1 with ftfy 6.1.1.
REFERENCE: list[tuple[str, list[int]]] = json.loads(
    (Path(__file__).parent / "clip_token_ids.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("text", "ids"), REFERENCE, ids=ascii)
def test_texts_have_the_ids_that_kohyas_trainer_gives(text: str, ids: list[int]) -> None:
    pieces_BKT = clip.token_pieces(clip_tokenizer(), [text], max_token_length=225)
    inner = pieces_BKT[0, :, 1:-1].flatten().tolist()
    assert inner[: len(ids)] == ids
    assert set(inner[len(ids) :]) <= {49407}
    count = token_counter(base_options(Path("model.safetensors")))
    assert count is not None
    assert count(text) == len(ids) == clip.num_tokens(clip_tokenizer(), [text])[0]


@given(text=st.text(st.characters(max_codepoint=127), max_size=40))
def test_what_ftfy_is_spared_it_would_not_change(text: str) -> None:
    assert cleaned(text) == " ".join(ftfy.fix_text(text).split()).lower()


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("A girl's  Dress", False),
        ("caf\u00e9", False),
        ("cafe\u0301", False),
        ("a girl\u2019s dress", True),
        ("a &amp; b", True),
        ("a & b", False),
    ],
)
def test_only_texts_that_ftfy_changes_count_as_repaired(text: str, repaired: bool) -> None:
    assert is_repaired(text) is repaired


@pytest.mark.parametrize(
    "text", ["a", "tag, ", " ", "\n", "\u2019", "\u3000", "x\u0301 ", "&amp;", "\x00", "a\n"]
)
def test_of_a_caption_of_ten_megabytes_only_the_beginning_is_read(text: str) -> None:
    tokenizer = clip_tokenizer()
    seconds = []
    ids = []
    for num_letters in (100_000, 10_000_000):
        caption = "red, " + text * (num_letters // len(text))
        start = time.process_time()
        ids.append(clip.token_pieces(tokenizer, [caption], max_token_length=225))
        seconds.append(time.process_time() - start)
    assert ids[0].equal(ids[1])
    # What is cleaned away has to be passed over: proportional at worst, and for words nothing.
    assert seconds[1] < 100 * max(seconds[0], 0.02)
    assert len(cleaned(caption, num_letters=MAX_CAPTION_LETTERS)) <= MAX_CAPTION_LETTERS
