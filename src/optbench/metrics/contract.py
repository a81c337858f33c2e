"""The seam of metrics: one image, perhaps others to compare with, and a few numbers.

A metric of your own is a class with these five members, named as an optimizer's is:
    +metric.metrics.mine._target_=mypackage.Mine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from optbench.metrics.catalogue import Meaning

# Which pictures come beside the measured one: none; the base's of the same prompt and seed; the
# last epoch's before it; the prompt's other seeds in the same epoch; the training pictures.
Reference = Literal["none", "base", "previous", "seeds", "training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture file and the words that belong to it."""

    path: Path
    text: str  # the prompt, or a training picture's caption


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One number of one picture."""

    value: float
    detail: str = ""  # for instance the training picture that is nearest


class Metric(Protocol):
    """A measure of pictures from their files; the same files give the same numbers."""

    reference: Reference
    meanings: Mapping[str, Meaning]  # by the names of the numbers it gives
    settings: Mapping[str, object]  # plain values that decide the numbers besides the pictures
    bases: tuple[str, ...]  # the names of those whose pictures it can judge; none: all

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the numbers of one picture by name; those that do not apply are left out."""
