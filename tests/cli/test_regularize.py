"""`optbench regularize`: images by seed, resuming, and nothing written over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from optbench.cli.regularize import main
from optbench.contracts import SampleRequest
from optbench.models.text.clip import ClipTextOptions

pytestmark = pytest.mark.usefixtures("fake_assets")


class Painter:
    """A base whose picture of a seed is one colour; it stops after as many as it is told."""

    name = "painter"

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []
        self.num_left = 1000

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        return ClipTextOptions.of(settings)

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        self.requests.append(request)
        if self.num_left < len(request.seeds):
            raise KeyboardInterrupt
        self.num_left -= len(request.seeds)
        size = (request.width, request.height)
        return [Image.new("RGB", size, (seed % 251, 9, 9)) for seed in request.seeds]


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Painter:
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    base = Painter()
    monkeypatch.setattr("optbench.models.load_base", lambda options, *, device, dtype: base)
    return base


def run(*arguments: str) -> int:
    return main(["class_words=1girl", "num_pictures=5", "width=64", "height=64", *arguments])


def names(folder: str = "regularization/1_1girl") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_folder_in_kohyas_layout_with_seeds_that_count_on(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("batch_size=2", "seed=70", "steps=7") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "regularization"
    assert names() == [f"0000{index + 1}-{70 + index}.png" for index in range(5)]
    assert [one.seeds for one in painter.requests] == [(70, 71), (72, 73), (74,)]
    assert {one.text for one in painter.requests} == {"1girl"}
    for index, name in enumerate(names()):
        with Image.open(f"regularization/1_1girl/{name}") as picture:
            assert picture.getpixel((0, 0)) == (70 + index, 9, 9)
            lines = picture.info["parameters"].splitlines()
        assert lines[0] == "1girl"
        assert lines[1].startswith(f"Steps: 7, Sampler: DDIM, CFG scale: 7, Seed: {70 + index}, ")


def test_a_stopped_run_goes_on_and_more_pictures_are_added(painter: Painter) -> None:
    painter.num_left = 2
    assert run() == 130
    assert len(names()) == 2
    before = {name: Path("regularization/1_1girl", name).stat().st_mtime_ns for name in names()}
    painter.num_left = 1000
    assert run("batch_size=3") == 0  # no part of how a picture looks
    assert run("num_pictures=6") == 0
    assert len(names()) == 6
    for name, time in before.items():
        assert Path("regularization/1_1girl", name).stat().st_mtime_ns == time
    num_requests = len(painter.requests)
    assert run("num_pictures=6") == 0
    assert len(painter.requests) == num_requests


def test_prompts_take_turns_and_may_be_captions(painter: Painter) -> None:
    assert run("prompt=[1girl,'1girl, park']", "write_captions=true", "batch_size=2") == 0
    texts = [path.read_text().strip() for path in sorted(Path("regularization").rglob("*.txt"))]
    assert texts == ["1girl", "1girl, park", "1girl", "1girl, park", "1girl"]
    made = {seed: one.text for one in painter.requests for seed in one.seeds}
    assert made == {1234 + index: text for index, text in enumerate(texts)}


def test_several_classes_are_one_sweep(painter: Painter) -> None:
    assert main(["-m", "class_words=1girl,a boy", "num_pictures=1", "width=64", "height=64"]) == 0
    assert names("regularization/1_1girl") == names("regularization/1_a boy")


@pytest.mark.parametrize("change", ["steps=9", "prompt=other", "cfg_scale=1", "seed=2"])
def test_pictures_of_other_settings_are_never_written_over(
    painter: Painter, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert run(change) == 2
    error = capsys.readouterr().err
    assert change.partition("=")[0] + "=" in error
    assert "dir=regularization-2" in error
    assert run(change, "dir=regularization-2") == 0


def test_a_folder_of_somebody_else_is_left_alone(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("regularization/1_1girl")
    folder.mkdir(parents=True)
    (folder / "mine.png").write_bytes(b"mine")
    assert run() == 2
    assert "did not make" in capsys.readouterr().err
    assert names() == ["mine.png"]


def test_everything_wrong_is_told_at_once_with_this_commands_keys(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("repeats=0", "sampler=foo", "width=13", "class_words=a/b", "prompt=[]", "foo=1")
    assert run(*wrong) == 2
    error = capsys.readouterr().err
    for key in ("repeats", "sampler", "width", "class_words", "prompt", "foo"):
        assert f". {key}: " in error
    assert "render." not in error
    assert "prompts." not in error


def test_what_this_machine_lacks_is_said_before_anything_is_written(
    painter: Painter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("mixed_precision=fp16", "device=cpu") == 2
    assert "mixed_precision" in capsys.readouterr().err
    assert not Path("regularization/1_1girl").exists()
