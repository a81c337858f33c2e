"""What a caption becomes at one use: each step alone, their order, and draws that stay apart."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from optbench import rng
from optbench.config.build import check_value, config_tree
from optbench.data.batches import StepBudget, plan_epoch
from optbench.data.captions import Warmup, draw_caption, longest_forms
from optbench.data.rules import check_captions, check_captions_for_length, check_captions_use
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN
from tests.data.test_batches import PICTURES

TAGS = "x, 1girl, a, b, c, d, e, f, g"
SHUFFLED = replace(PLAIN, shuffle_caption=True)


def drawn(
    caption: str = TAGS,
    options: DatasetOptions = PLAIN,
    *,
    occurrence: int = 0,
    epoch: int = 1,
    warmup: Warmup | None = None,
    **changes: Any,
) -> str:
    place = (epoch, "key", occurrence)
    return draw_caption(caption, replace(options, **changes), seed=5, place=place, warmup=warmup)


def all_drawn(caption: str, options: DatasetOptions = PLAIN, **changes: Any) -> list[str]:
    return [drawn(caption, options, occurrence=number, **changes) for number in range(300)]


@given(st.integers(0, 99), st.integers(0, 9), st.floats(0, 1), st.booleans())
def test_what_was_there_before_is_drawn_as_before(
    occurrence: int, keep: int, rate: float, shuffles: bool
) -> None:
    draw = rng.shuffler(5, "caption", 1, "key", occurrence)
    if draw.random() < rate:
        expected = ""
    elif not shuffles:
        expected = TAGS
    else:
        tags = TAGS.split(", ")
        free = tags[keep:]
        draw.shuffle(free)
        expected = ", ".join(tags[:keep] + free)
    options = replace(PLAIN, shuffle_caption=shuffles, keep_tokens=keep, caption_dropout_rate=rate)
    assert drawn(options=options, occurrence=occurrence) == expected


def test_prefix_and_suffix_have_one_sbudget_and_take_part_in_everything_after() -> None:
    assert drawn("a, b", caption_prefix="new,", caption_suffix=", end") == "new, a, b , end"
    kept = {
        text.split(", ")[0]
        for text in all_drawn("a, b, c", SHUFFLED, caption_prefix="new,", keep_tokens=1)
    }
    assert kept == {"new"}
    # A dropped caption is empty, prefix or not.
    assert drawn("a", caption_prefix="new,", caption_dropout_rate=1.0) == ""


def test_every_nth_epoch_has_no_captions() -> None:
    found = [drawn("a", epoch=epoch, caption_dropout_every_n_epochs=3) for epoch in range(1, 7)]
    assert found == ["a", "a", "", "a", "a", ""]


def test_lines_and_choices_are_drawn_evenly_and_braces_can_be_written() -> None:
    counts = Counter(all_drawn("one {red|blue} dress\ntwo", enable_wildcard=True))
    assert set(counts) == {"one red dress", "one blue dress", "two"}
    assert 115 < counts["two"] < 185
    assert 40 < counts["one red dress"] < 110
    assert drawn("a {{b|c}} {d}", enable_wildcard=True) == "a {b|c} d"
    assert drawn("a {b|c}") == "a {b|c}"


def test_the_prefix_is_on_every_line_and_may_hold_a_choice() -> None:
    found = set(all_drawn("one\ntwo", enable_wildcard=True, caption_prefix="{x|y}"))
    assert found == {"x one", "y one", "x two", "y two"}


def test_what_a_separator_keeps_stays_in_front_and_at_the_end() -> None:
    caption = "x, y ||| a, , b, c ||| end, last"
    options = replace(SHUFFLED, keep_tokens_separator="|||", keep_tokens=3)
    found = all_drawn(caption, options, caption_tag_dropout_rate=0.5)
    assert all(text.startswith("x, y") and text.endswith("end, last") for text in found)
    middles = {text.removeprefix("x, y").removesuffix(", end, last") for text in found}
    assert {", a, b, c", ", c, b, a", ", b", ""} <= middles
    assert "|||" not in "".join(found)
    # A caption without it is kept by number.
    assert all(text.startswith("p, q, r") for text in all_drawn("p, q, r, s, t", options))


def test_tags_are_dropped_one_by_one_and_kept_ones_never() -> None:
    found = all_drawn(TAGS, keep_tokens=2, caption_tag_dropout_rate=0.3)
    counts = Counter(tag for text in found for tag in text.split(", "))
    assert counts["x"] == counts["1girl"] == 300
    for tag in "abcdefg":
        # 300 x 0.7 = 210, standard deviation 7.9
        assert 210 - 5 * 7.9 < counts[tag] < 210 + 5 * 7.9
    assert all(text.split(", ")[2:] == sorted(text.split(", ")[2:]) for text in found)


def test_dropping_tags_does_not_change_how_the_others_are_shuffled() -> None:
    whole = all_drawn(TAGS, SHUFFLED)
    thinned = all_drawn(TAGS, SHUFFLED, caption_tag_dropout_rate=0.4)
    for one, other in zip(whole, thinned, strict=True):
        left = set(other.split(", "))
        assert [tag for tag in one.split(", ") if tag in left] == other.split(", ")
    assert whole != thinned
    # Nor does shuffling change how many are dropped from which caption.
    plain = all_drawn(TAGS, caption_tag_dropout_rate=0.4)
    lengths = [[len(text.split(", ")) for text in found] for found in (thinned, plain)]
    assert lengths[0] == lengths[1]


def test_separators() -> None:
    assert drawn("a;b;c", SHUFFLED, caption_separator=";", keep_tokens=3) == "a, b, c"
    # Tags joined by the secondary separator move together and are parted at the end.
    found = set(all_drawn("a;;;b, c", SHUFFLED, secondary_separator=";;;"))
    assert found == {"a,b, c", "c, a,b"}


@given(st.integers(0, 12), st.integers(1, 40), st.integers(0, 6))
def test_tags_join_as_fast_as_kohyas_formula_says(num_free: int, steps: int, least: int) -> None:
    caption = ", ".join(f"t{index}" for index in range(num_free + 1))
    for done in range(steps):
        text = drawn(
            caption,
            keep_tokens=1,
            token_warmup_step=steps,
            token_warmup_min=least,
            warmup=Warmup(num_done=done, num_steps=steps),
        )
        expected = math.floor(done * ((num_free - least) / steps)) + least
        tags = caption.split(", ")
        assert text == ", ".join(tags[:1] + tags[1:][:expected])


def test_the_warm_up_follows_updates_and_not_batches_and_ends() -> None:
    options = replace(PLAIN, token_warmup_step=0.5, token_warmup_min=0)
    budget = StepBudget(gradient_accumulation=2, total_steps=21)  # half of it, rounded down: 10

    def lengths(epoch: int) -> list[int]:
        planned = plan_epoch(PICTURES, options, seed=7, epoch=epoch, batch_size=4, budget=budget)
        assert len({len(one.samples) for one in planned}) > 1
        return [
            len([tag for tag in batch.samples[0].caption.split(", ") if tag]) for batch in planned
        ]

    # 6 batches are 3 updates; 9 tags join over 10 updates.
    assert lengths(1) == [0, 0, 0, 0, 1, 1]
    assert lengths(4) == [8, 8, 9, 9, 9, 9]


def test_the_longest_form_is_what_a_text_encoder_must_read() -> None:
    options = replace(PLAIN, caption_prefix="p", enable_wildcard=True)
    assert longest_forms("a {b|ccc}\nd", options) == ["p a ccc", "p d"]
    assert longest_forms("a {b|ccc}", replace(options, enable_wildcard=False)) == ["p a {b|ccc}"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"caption_tag_dropout_rate": 1.5}, "caption_tag_dropout_rate"),
        ({"caption_dropout_every_n_epochs": -1}, "caption_dropout_every_n_epochs"),
        ({"token_warmup_step": -1.0}, "token_warmup_step"),
        ({"token_warmup_min": 2}, "token_warmup_min"),
        ({"caption_prefix": ""}, "caption_prefix"),
        ({"class_tokens": " "}, "class_tokens"),
        ({"caption_separator": ""}, "caption_separator"),
        ({"caption_separator": ";"}, "caption_separator"),
        ({"keep_tokens": 1}, "keep_tokens"),
        ({"keep_tokens_separator": "|||"}, "keep_tokens_separator"),
        ({"secondary_separator": ","}, "secondary_separator"),
        ({"caption_prefix": "new", "reg_dir": "reg"}, "caption_prefix"),
    ],
)
def test_impossible_and_ineffective_settings_are_refused_with_one_that_works(
    changes: dict[str, Any], where: str
) -> None:
    options = replace(PLAIN, **changes)
    wrong = check_value(DatasetOptions, config_tree(options), "dataset")
    (problem,) = wrong or check_captions(options)
    assert problem.where == f"dataset.{where}"
    assert f"dataset.{where}=" in problem.fix


def test_dropping_captions_after_the_last_epoch_is_refused() -> None:
    options = replace(PLAIN, caption_dropout_every_n_epochs=4)
    (problem,) = check_captions_for_length(options, num_epochs=3)
    assert problem.where == "dataset.caption_dropout_every_n_epochs"
    assert check_captions_for_length(options, num_epochs=4) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"caption_tag_dropout_rate": 0.1, "keep_tokens": 1},
        {"token_warmup_step": 5.0, "token_warmup_min": 3, "keep_tokens": 1},
        {"caption_separator": ";", "secondary_separator": ","},
        {"shuffle_caption": True, "keep_tokens_separator": "|||"},
    ],
)
def test_settings_that_do_something_are_no_problem(changes: dict[str, Any]) -> None:
    assert list(check_captions(replace(PLAIN, **changes))) == []


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("enable_wildcard", True, "a\nb"),
        ("enable_wildcard", True, "{a|b}"),
        ("keep_tokens_separator", "|||", "a ||| b"),
        ("secondary_separator", ";", "a;b"),
    ],
)
def test_what_no_caption_gives_anything_to_do_is_refused(name: str, value: Any, good: str) -> None:
    options = replace(SHUFFLED, **{name: value})
    (problem,) = check_captions_use(options, ["plain, words"])
    assert problem.where == f"dataset.{name}"
    assert list(check_captions_use(options, ["plain, words", good])) == []


def test_of_more_tags_than_are_ever_read_some_are_drawn() -> None:
    tags = [f"t{number}" for number in range(50_000)]
    options = replace(PLAIN, shuffle_caption=True, keep_tokens=1)
    caption = ", ".join(tags)
    drawn = [
        draw_caption(caption, options, seed=3, place=(epoch, "a", 0)).split(", ")
        for epoch in (1, 2)
    ]
    for words in drawn:
        assert words[0] == "t0"
        assert len(words) == len(set(words)) > 1000
        assert set(words) <= set(tags)
        # From everywhere, not from the beginning alone.
        assert sum(int(word[1:]) > 25_000 for word in words[:1001]) > 400
    assert drawn[0][:20] != drawn[1][:20]
