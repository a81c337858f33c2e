"""What was found while pictures were read: problems, and what may not have been meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from optbench.dataset.wording import named
from optbench.errors import Problem


@dataclass(slots=True)
class Findings:
    """Everything wrong, and by kind the pictures about which there is something to say."""

    problems: list[Problem] = field(default_factory=list)
    noted: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # whole sentences

    def note(self, sentence: str, picture: str) -> None:
        """Remember that a sentence, whose subject is pictures, is true of this one, too."""
        self.noted.setdefault(sentence, []).append(picture)

    def sentences(self, *, num_pictures: int, kind: str = "pictures") -> Iterator[str]:
        """Yield one sentence for everything noted, with the first few pictures' names."""
        yield from self.remarks
        for sentence, names in self.noted.items():
            yield f"{len(names)} of {num_pictures} {kind} {sentence}: {named(names)}"
