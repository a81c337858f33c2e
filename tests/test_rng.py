"""Randomness by address: what it depends on, and that it is what it always was."""

from __future__ import annotations

from optbench import rng


def test_every_part_of_an_address_gives_other_numbers() -> None:
    addresses = [
        (1234, "noise", 1, "a", 0),
        (1235, "noise", 1, "a", 0),
        (1234, "timesteps", 1, "a", 0),
        (1234, "noise", 2, "a", 0),
        (1234, "noise", 1, "b", 0),
        (1234, "noise", 1, "a", 1),
        (1234, "noise", "1", "a", 0),
        (1234, "noise", 1, "a"),
    ]
    keys = [rng.key(*address) for address in addresses]  # type: ignore[arg-type]
    assert len(set(keys)) == len(addresses)
    assert rng.key(1, "noise", "ab", "c") != rng.key(1, "noise", "a", "bc")


def test_an_address_gives_what_it_always_gave() -> None:
    """A change here changes every training there ever was."""
    assert rng.key(1234, "noise", 1, "a", 0) == 2032346909632931064
