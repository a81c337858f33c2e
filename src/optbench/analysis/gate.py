"""Say which LoRAs are broken: no loss on images of the subject alone can see that.

A broken LoRA may have a low held-out loss: it draws the subject, and nothing else. What tells is
the loss it adds on other subjects, and backgrounds that are not the ones asked for. The limits are
of docs/embedded-base.md, where LoRAs were scored by eye.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optbench.analysis.comparisons import TRAINING, known_records
from optbench.analysis.frames import Frames
from optbench.analysis.image_metrics import BACKGROUND_LOST, image_flags
from optbench.analysis.outcomes import FORGETTING_PER_GAIN, is_forgetful, number_of

Kind = Literal["forgetting", "background", "blank", "noise"]
_KINDS: Mapping[str, Kind] = {"lost_background": "background", "blank": "blank", "noise": "noise"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One reason why a run's LoRA is broken."""

    sweep: str
    run: str
    kind: Kind
    value: float
    limit: float

    @property
    def sentence(self) -> str:
        """The reason in words, with its numbers."""
        if self.kind == "forgetting":
            return (
                f"forgets other subjects: {self.value:+.4f} of loss on them, above "
                f"{FORGETTING_PER_GAIN:g} x the gain ({self.limit:.4f})"
            )
        if self.kind == "background":
            return (
                f"loses the background: background_obedience {self.value:.2f}, below "
                f"{self.limit:.2f} ({BACKGROUND_LOST:g} under the base's)"
            )
        if self.kind == "blank":
            return f"draws one colour in {self.value:.0%} of its images"
        return f"draws noise: local_contrast {self.value:.3f}, above {self.limit:.3f}"


def broken(frames: Frames) -> tuple[Broken, ...]:
    """Return every reason why a finished training's last epoch is broken; none for a sound one.

    A lost background is a reason only where no loss on other subjects was measured: of 18 sound
    LoRAs two had it.
    """
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    rows = [row for row in known_records(runs) if row["status"] == "done"]
    finished = {(str(row["sweep"]), str(row["run"])): row for row in rows}
    reasons = [reason for row in rows if (reason := _forgetting(row))]
    for flag in image_flags(frames):
        row = finished.get((flag.sweep, flag.run))
        if row is None or not flag.is_last or flag.kind not in _KINDS:
            continue
        if flag.kind != "lost_background" or number_of(row, "others") is None:
            reasons.append(
                Broken(
                    sweep=flag.sweep,
                    run=flag.run,
                    kind=_KINDS[flag.kind],
                    value=flag.value,
                    limit=flag.limit,
                )
            )
    return tuple(reasons)


def broken_runs(frames: Frames) -> dict[str, str]:
    """Return in words why runs are broken, by the run's name."""
    words: dict[str, list[str]] = {}
    for reason in broken(frames):
        words.setdefault(reason.run, []).append(reason.sentence)
    return {run: "; ".join(sentences) for run, sentences in words.items()}


def _forgetting(row: Mapping[str, Any]) -> Broken | None:
    """Return a reason if a run adds more loss on other subjects than its gain is worth."""
    added, difference = number_of(row, "others"), number_of(row, "held_out")
    if added is None or difference is None or not is_forgetful(row):
        return None
    limit = FORGETTING_PER_GAIN * max(0.0, -difference)
    return Broken(
        sweep=str(row["sweep"]), run=str(row["run"]), kind="forgetting", value=added, limit=limit
    )
