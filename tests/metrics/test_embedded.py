"""Pictures of the embedded base: what texts ask for, and what the reader sees of its drawings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from optbench.metrics import Picture
from optbench.metrics.embedded import EmbeddedEncoder, asked_for
from optbench.metrics.measure import Tally, measure_run
from optbench.storage import files, resources, rundir
from tests.builders.image_runs import make_run, save, smooth

VALUES: Mapping[str, Sequence[str]] = json.loads(
    (resources.asset("tiny-reader") / "reader.json").read_text()
)["values"]
OWN = sorted(resources.asset("mirelle").rglob("*.webp"))


@pytest.fixture(scope="module")
def metric() -> EmbeddedEncoder:
    return EmbeddedEncoder(str(resources.asset("tiny")), "cpu")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "mirelle, 1girl, wearing black bikini, beach, blue sky",
            {"outfit": "bikini", "outfit_color": "black", "background": "beach"},
        ),
        ("dancing in a field of flowers, smile", {"background": "flower field"}),
        ("mirelle, gem armor, night_city", {"outfit": "gem armor", "background": "night city"}),
        ("(starry dress:1.3), ((snow))", {"outfit": "starry dress", "background": "snow"}),
        ("black hair, dress", {"outfit": "dress"}),
        ("<lora:dress:1> blackdress", {}),
        ("", {}),
    ],
)
def test_what_a_text_asks_for(text: str, found: dict[str, str]) -> None:
    assert asked_for(text, VALUES) == found


def pictures() -> list[Picture]:
    return [
        Picture(path=path, text=path.with_suffix(".txt").read_text(encoding="utf-8"))
        for path in OWN
    ]


def test_her_own_pictures_are_hers_and_wear_what_their_captions_say(
    metric: EmbeddedEncoder,
) -> None:
    own = pictures()
    found = [metric.measure(one, [other for other in own if other is not one]) for one in own]
    worn = [one["outfit_obedience"].value for one in found]
    assert sum(value > 0.5 for value in worn) >= 0.9 * len(worn)
    assert sum(one["background_obedience"].value > 0.5 for one in found) >= 0.9 * len(found)
    assert sum(one["resemblance"].value for one in found) / len(found) > 0.5
    # A caption that names a trained outfit can leak none.
    assert all("outfit_leak" not in one and "resistance" not in one for one in found)


def test_the_trained_outfit_under_another_prompt_is_a_leak(metric: EmbeddedEncoder) -> None:
    own = pictures()
    dressed = next(one for one in own if "starry dress" in one.text)
    asked = Picture(path=dressed.path, text="mirelle, black bikini, beach")
    found = metric.measure(asked, own)
    assert found["outfit_leak"].value > 0.5
    expected = found["outfit_obedience"].value - found["outfit_leak"].value
    assert found["resistance"].value == pytest.approx(expected)
    assert found["resistance"].value < -0.4
    nothing_asked = metric.measure(Picture(path=dressed.path, text="mirelle, 1girl"), own)
    assert set(nothing_asked) == {"resemblance"}


def test_resemblance_is_the_cosine_with_the_mean_of_unit_vectors(
    metric: EmbeddedEncoder, tmp_path: Path
) -> None:
    own = Picture(path=save(tmp_path / "a.png", smooth(1)), text="")
    assert metric.measure(own, [own])["resemblance"].value == pytest.approx(1, abs=1e-5)
    assert metric.measure(own, []) == {}


def test_without_its_encoder_it_is_a_notice(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=1)
    tally = Tally()
    measure_run(run, {"embedded": EmbeddedEncoder(str(tmp_path), "cpu")}, tally)
    assert "image_encoder" in tally.notices[0]
    assert files.read_rows(run.path / rundir.METRICS_NAME) == []


def test_another_encoder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "image_encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"other")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    run = make_run(tmp_path, epochs=1)
    tally = Tally()
    measure_run(run, {"embedded": EmbeddedEncoder(str(tmp_path), "cpu")}, tally)
    assert "was not trained over" in tally.notices[0]
