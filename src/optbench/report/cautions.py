"""Put into words what a sweep's runs do not share: images seen, software, machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optbench.analysis.cautions import Caution, Made
from optbench.analysis.superseded import Content, Superseded
from optbench.report.wording import listed, times

_MAX_NAMED = 4
_MADE: Mapping[Made, str] = {
    "torch": "torch",
    "optbench": "optbench",
    "commit": "optbench's code (git commit)",
    "device": "the device",
    "gpu": "the GPU",
    "cpu": "the CPU",
    "threads": "the number of CPU threads",
}
_COMMIT_DIGITS = 9
_CONTENTS: Mapping[Content, tuple[str, str]] = {
    "images": ("saw other images", "captions or images in {place} changed"),
    "base": ("trained another base model", "the files of {place} changed"),
    "optimizer": ("used other code", "the source of {place} changed"),
}


def superseded_sentences(
    stale: Sequence[Superseded], labels: Mapping[str, str], num_runs: int
) -> Iterator[str]:
    """Yield which runs are compared with nothing, and why.

    Args:
        stale: The runs that later ones have superseded.
        labels: Of each run the name that tells it from the others.
        num_runs: How many trainings there are.
    """
    groups: dict[tuple[Content, str], list[Superseded]] = {}
    for run in stale:
        groups.setdefault((run.content, run.place), []).append(run)
    for (content, place), runs in groups.items():
        did, why = _CONTENTS[content]
        newer = labels.get(runs[0].newer_run, runs[0].newer_run)
        yield (
            f"{len(runs)} of {times(num_runs, 'run')} {did}: {why.format(place=place)} between "
            f"{_names([labels.get(run.run, run.run) for run in runs])} and {newer}. "
            f"{'It is' if len(runs) == 1 else 'They are'} compared with nothing."
        )


def caution_sentence(caution: Caution, labels: Mapping[str, str]) -> str:
    """Return in what runs were computed unlike, and which comparison that touches."""
    what = caution.package if caution.made == "package" else _MADE[caution.made]
    values = []
    for value, runs in sorted(caution.values.items(), key=lambda entry: -len(entry[1])):
        short = f"{value[:_COMMIT_DIGITS]}{'+' * value.endswith('+')}"
        text = short if caution.made == "commit" else value
        values.append(f"{text} ({_names([labels.get(run, run) for run in runs])})")
    sentence = f"Not computed alike: {what} is {listed(values)}."
    if caution.confounded:
        return (
            f"{sentence} Every value of {listed(caution.confounded)} has only one of these, so a "
            "difference may come from either."
        )
    return sentence


def _names(labels: Sequence[str]) -> str:
    if len(labels) > _MAX_NAMED:
        return times(len(labels), "run")
    return listed(labels)
