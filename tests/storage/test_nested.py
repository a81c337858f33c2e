"""Nested settings: one group, dotted keys, every value."""

from __future__ import annotations

from optbench.storage.nested import flatten, map_values, section

TREE = {"seed": 1, "train": {"epochs": 2, "lr": {"unet": [1, 2]}, "off": {}}}


def test_flat_settings_are_spelled_like_overrides_and_keep_lists() -> None:
    assert flatten(TREE) == {"seed": 1, "train.epochs": 2, "train.lr.unet": [1, 2]}


def test_a_group_that_is_not_there_or_none_is_empty() -> None:
    assert section(TREE, "train", "lr") == {"unet": [1, 2]}
    assert section(TREE, "train", "missing") == section(TREE, "seed", "x") == {}


def test_every_key_and_value_is_changed_and_sequences_are_lists() -> None:
    assert map_values({1: ("a", {"b": "c"})}, lambda text: text * 2) == {"11": ["aa", {"bb": "cc"}]}
