"""What runs do not share beside their settings is named, and which comparison it touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optbench.analysis import load
from optbench.analysis.cautions import cautions
from optbench.analysis.superseded import Superseded
from optbench.report.cautions import caution_sentence, superseded_sentences
from tests.builders.fabricated import make_run


def made(**changes: Any) -> dict[str, Any]:
    return {
        "device": changes.get("device", "cpu"),
        "num_threads": changes.get("threads", 1),
        "cpu": changes.get("cpu", "A"),
        "optbench": changes.get("optbench", "0.2.0"),
        "packages": {"torch": changes.get("torch", "2.13.0"), **changes.get("packages", {})},
        "optimizer": {"package": "torch", "package_version": "2.13.0", **changes.get("class_", {})},
        "git": {"commit": changes.get("commit", "a" * 40), "is_dirty": False},
    }


def of(sweep: Path, second: dict[str, Any], third: dict[str, Any] | None = None) -> list[Any]:
    make_run(sweep, "first", optimizer="adamw", provenance=made())
    make_run(sweep, "second", optimizer="lion", provenance=second)
    make_run(sweep, "third", optimizer="adamw", seed=2, provenance=third or made())
    return cautions(load(sweep).runs)


@pytest.mark.parametrize(
    ("other", "kind", "value"),
    [
        ({"torch": "1.0.0"}, "torch", "1.0.0"),
        ({"optbench": "0.0.1", "commit": "b" * 40}, "optbench", "0.0.1"),
        ({"commit": "b" * 40}, "commit", "b" * 40),
        ({"threads": 64}, "threads", "64"),
        ({"cpu": "B"}, "cpu", "B"),
        ({"device": "cuda:0"}, "device", "cuda"),
    ],
)
def test_other_software_and_machines_are_named(
    tmp_path: Path, other: dict[str, Any], kind: str, value: str
) -> None:
    (caution,) = of(tmp_path / "s", made(**other))
    assert caution.made == kind
    assert caution.values[value] == ("second",)
    # Lion alone ran there: what optimizer does may be what the other version does.
    assert caution.confounded == ("optimizer",)
    sentence = caution_sentence(caution, {"second": "lion"})
    assert "(lion)" in sentence
    assert sentence.endswith("so a difference may come from either.")


def test_what_is_spread_over_the_settings_touches_none_of_them(tmp_path: Path) -> None:
    # AdamW ran with both versions, and so did seed 1.
    (caution,) = of(tmp_path / "s", made(torch="1.0.0"), made(torch="1.0.0"))
    assert caution.confounded == ()
    assert caution_sentence(caution, {}).startswith("Not computed alike: torch is 1.0.0 (second")
    # Each seed ran with one version.
    (caution,) = of(tmp_path / "t", made(), made(torch="1.0.0"))
    assert caution.confounded == ("seed",)
    assert of(tmp_path / "u", made()) == []


def test_a_package_is_compared_with_itself(tmp_path: Path) -> None:
    lion = {"package": "lion-pytorch", "package_version": "0.2.5"}
    assert of(tmp_path / "s", made(class_=lion)) == []
    older = {"package": "lion-pytorch", "package_version": "0.2.3"}
    (caution,) = of(tmp_path / "t", made(class_=lion), made(class_=older))
    assert (caution.made, caution.package) == ("package", "lion-pytorch")
    assert caution.values == {"0.2.5": ("second",), "0.2.3": ("third",)}


def test_runs_of_other_images_are_named_with_the_folder() -> None:
    stale = [
        Superseded(sweep="s", run="a", content="images", place="my-data", newer_run="b"),
    ]
    (sentence,) = superseded_sentences(stale, {"a": "adamw", "b": "lion"}, 4)
    assert sentence == (
        "1 of 4 runs saw other images: captions or images in my-data changed between adamw and "
        "lion. It is compared with nothing."
    )
