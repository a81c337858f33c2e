"""`optbench render`: axes and sheets, from which files, each image rendered once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from optbench.cli.render import run as render_run
from optbench.cli.render.axes import read_axis
from optbench.cli.render.command import main
from optbench.cli.render.grid_plan import Page, pages
from optbench.cli.render.plan import compose_plots, with_named_files
from optbench.cli.render.wildcards import drawn, put_in
from optbench.contracts import SampleRequest
from optbench.errors import ConfigError
from optbench.models.text.clip import ClipTextOptions
from optbench.records import LoraTarget
from optbench.render import sheet
from optbench.storage.rundir import write_status
from tests.builders.lora_files import write_lora

pytestmark = pytest.mark.usefixtures("fake_assets")
LAYER = "lora_unet_layer"
SMALL = (
    "prompts=folder",
    "prompts.prompts.a.text='1girl, red dress'",
    "prompts.prompts.a.negative=red",
    "prompts.prompts.a.width=8",
    "prompts.prompts.a.height=16",
    "render.seeds=[5,6]",
)


class Painter:
    """A base of one layer, whose pictures show the layer's weight in hundredths, and the seed."""

    name = "painter"

    def __init__(self) -> None:
        self.layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.layer.weight.fill_(0.0)
        self.requests: list[SampleRequest] = []
        self.error: BaseException | None = None

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        return (LoraTarget(name=LAYER, module=self.layer, part="unet", needs_conv_dim=False),)

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        return ClipTextOptions.of(settings)

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        level = round(float(self.layer.weight) * 100)
        size = (request.width, request.height)
        return [Image.new("RGB", size, (level, seed % 256, 0)) for seed in request.seeds]


def lora(path: Path, change: float, *, clip_skip: int | None = None) -> Path:
    """Write a LoRA that adds `change` to the layer's only weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{LAYER}.lora_up.weight": torch.tensor([[change]]),
        f"{LAYER}.lora_down.weight": torch.ones(1, 1),
        f"{LAYER}.alpha": torch.tensor(1.0),
    }
    metadata = None if clip_skip is None else {"ss_clip_skip": str(clip_skip)}
    return write_lora(path, tensors, metadata=metadata)


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Painter:
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    base = Painter()
    monkeypatch.setattr(render_run, "load_base", lambda options, *, device, dtype: base)
    lora(place / "one.safetensors", 0.5)
    lora(place / "two.safetensors", 0.25)
    for epoch, change in ((1, 0.1), (2, 0.2)):
        lora(place / f"run-1/lora/run-1-00000{epoch}.safetensors", change)
    return base


def run(*arguments: str) -> int:
    return main([*SMALL, *arguments])


def plotted(*arguments: str) -> list[Page]:
    (one,) = compose_plots([*SMALL, *arguments]).runs
    return pages(one.plot)


def levels() -> list[tuple[int, int]]:
    """Return weight and seed of every picture that was made."""
    found = []
    for path in Path("renders/cells").glob("*.png"):
        with Image.open(path) as image:
            pixel: Any = image.getpixel((0, 0))
        found.append((pixel[0], pixel[1]))
    return sorted(found)


def problems(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(*arguments) == 2
    assert not Path("renders").exists()
    return capsys.readouterr().err


def test_files_stand_beside_the_base_with_seeds_as_columns(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("one.safetensors", "two.safetensors") == 0
    assert levels() == [(0, 5), (0, 6), (25, 5), (25, 6), (50, 5), (50, 6)]
    assert float(painter.layer.weight) == 0.0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert [path.name for path in folder.iterdir()] == ["001-a.png"]
    (page,) = plotted("one.safetensors", "two.safetensors")
    assert page.columns == ("seed 5", "seed 6")
    assert [title for title, _ in page.rows] == ["base, no LoRA", "one", "two"]


def test_what_is_made_is_kept_and_shared_by_other_plots(painter: Painter) -> None:
    assert run("one.safetensors") == 0
    num_requests = len(painter.requests)
    assert run("one.safetensors") == 0
    assert run("one.safetensors", "x=null", "z=seed") == 0
    assert len(painter.requests) == num_requests
    assert run("one.safetensors", "render.steps=7") == 0
    assert len(painter.requests) == 2 * num_requests
    lora(Path("one.safetensors"), 0.75)
    assert run("one.safetensors") == 0
    assert (75, 5) in levels()
    assert {path.name for path in Path().iterdir()} == {
        "one.safetensors", "two.safetensors", "run-1", "renders"
    }  # fmt: skip


def test_strengths_multiply_and_0_is_the_base(painter: Painter) -> None:
    assert (
        run("one.safetensors", "y={strength:[0,0.5,1,-1.0]}", "x={seed:9}", "with_base=false") == 0
    )
    assert levels() == [(0, 9), (0, 9), (25, 9), (50, 9)]  # -0.5 is black too
    (page,) = plotted("one.safetensors", 'y={strength:"0-1 [5]"}')
    assert [title for title, _ in page.rows][1] == "strength 0.25"


def test_epochs_of_a_run_and_the_ones_it_has_not(painter: Painter) -> None:
    lora(Path("run-2/lora/run-2-000002.safetensors"), 0.9)
    write_status(Path("run-2"), "diverged", "loss is nan")
    (page,) = plotted("run-1", "x=null", "y=epoch", "z={seed:5}")
    assert [title for title, _ in page.rows] == ["base, no LoRA", "epoch 1", "epoch 2"]
    assert run("run-1", "run-2", "x=lora", "y=epoch", "z={seed:5}") == 0
    assert levels() == [(0, 5), (10, 5), (20, 5), (90, 5)]
    (page,) = plotted("run-1", "run-2", "x=lora", "y=epoch", "z={seed:5}")
    assert page.columns == ("run-1", "run-2")
    assert page.rows[1][1][1].missing == "no epoch 1 (diverged: loss is nan)"
    (plan,) = Path("renders/plots").glob("*/plot.json")
    told = [note for _, row, note in json.loads(plan.read_text())["pictures"] if row == "epoch 1"]
    assert told[1] == "no epoch 1 (diverged: loss is nan)"
    (page,) = plotted("run-1", "z={seed:5}", "x=null")
    assert page.rows[1][1][0].loras[0][1].name == "run-1-000002.safetensors"  # the last one


def test_prompts_may_name_their_loras(painter: Painter) -> None:
    text = "prompts.prompts.a.text='1girl <lora:one:0.5> <lora:run-1:2>'"
    assert run("one.safetensors", "run-1", text, "y=null", "x={seed:5}") == 0
    assert levels() == [(65, 5)]
    assert painter.requests[0].text.strip() == "1girl"
    (path,) = Path("renders/cells").glob("*.png")
    with Image.open(path) as image:
        first = image.info["parameters"].splitlines()[0]
    assert first == "1girl <lora:one:0.5> <lora:run-1:2>"


def test_text_is_searched_and_replaced_in_both_prompts(painter: Painter) -> None:
    assert (
        run("one.safetensors", "x={sr:[red,blue]}", "y=null", "render.seeds=[5]", "with_base=false")
        == 0
    )
    assert [(one.text, one.negative) for one in painter.requests] == [
        ("1girl, red dress", "red"),
        ("1girl, blue dress", "blue"),
    ]


def test_wildcards_stand_along_a_side_or_are_drawn_by_seed(painter: Painter) -> None:
    Path("words").mkdir()
    Path("words/colour.txt").write_text("# shades\nred\n\nblue\n__dark__ green\n")
    Path("words/dark.txt").write_text("dark\n")
    text = "prompts.prompts.a.text='a __colour__ dress'"
    folder = "wildcards_dir=words"
    (page,) = plotted(text, folder, "y={wildcard:colour}", "x={seed:5}")
    assert [row[0].prompt.text for _, row in page.rows] == [
        "a red dress",
        "a blue dress",
        "a dark green dress",
    ]
    (page,) = plotted(text, folder, "y=null", "x={seed:1-30}")
    texts = [shot.prompt.text for shot in page.rows[0][1]]
    assert len(set(texts)) == 3
    assert texts == [
        shot.prompt.text for shot in plotted(text, folder, "y=null", "x={seed:1-30}")[0].rows[0][1]
    ]
    (page,) = plotted(text, "+wildcards.colour=[pink]", "y=null", "x={seed:1}")
    assert page.rows[0][1][0].prompt.text == "a pink dress"
    lists = {"a": ("x", "y")}
    assert len({drawn("__a__ __a__", lists, seed=seed) for seed in range(40)}) == 4
    assert put_in("__a__ __b__", {"a": "1"}) == "1 __b__"


def test_everything_may_stand_on_a_side(painter: Painter) -> None:
    sides = ("x={sampler:[Euler a,DDIM]}", "y={cfg_scale:[5,7.5]}", 'z={steps:"10-20 (+10)"}')
    found = plotted("one.safetensors", *sides, "render.seeds=[5]")
    assert [page.title for page in found] == ["10 steps, a", "20 steps, a"]
    assert [title for title, _ in found[0].rows] == ["CFG 5", "CFG 7.5"]
    shot = found[1].rows[1][1][0]
    assert (shot.sampler, shot.cfg_scale, shot.steps) == ("Euler a", 7.5, 20)
    assert run("one.safetensors", "x={clip_skip:[1,2]}", "y=prompt", "render.seeds=[5]") == 0
    assert {one.text_options.settings()["clip_skip"] for one in painter.requests} == {1, 2}


def test_a_sheet_shows_the_text_of_every_prompt_on_it(
    painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    write_sheet = sheet.write_sheet

    def noting(path: Path, plan: sheet.SheetPlan) -> Any:
        drawn.append(plan.text)
        return write_sheet(path, plan)

    monkeypatch.setattr(sheet, "write_sheet", noting)
    second = [
        f"+prompts.prompts.b.{key}" for key in ("text=sea", "negative=''", "width=16", "height=8")
    ]
    assert run("one.safetensors", "y=prompt", "x={seed:5}", *second) == 0
    assert run("one.safetensors", "y=lora", "x={sr:[red,blue]}", "render.seeds=[5]") == 0
    assert drawn == ["a: 1girl, red dress / b: sea", "1girl, red dress"]


def test_clip_skip_is_the_files_own(painter: Painter, capsys: pytest.CaptureFixture[str]) -> None:
    lora(Path("anime.safetensors"), 0.3, clip_skip=2)
    text = problems(capsys, "anime.safetensors", "one.safetensors")
    assert "clip_skip=2" in text
    assert run("anime.safetensors") == 0
    assert {one.text_options.settings()["clip_skip"] for one in painter.requests} == {2}


def test_a_clip_skip_that_the_base_has_not_is_refused(painter: Painter) -> None:
    file = lora(Path("odd.safetensors"), 0.3, clip_skip=99)
    (plan,) = compose_plots(with_named_files([str(file), *SMALL])).runs
    (Path("base") / "text_encoder").mkdir(parents=True)
    (Path("base") / "text_encoder" / "config.json").write_text('{"num_hidden_layers": 12}')
    options = plan.plot.options
    with pytest.raises(ConfigError) as refusal:
        render_run.clip_skip_of([file], replace(options, base=replace(options.base, path="base")))
    (problem,) = refusal.value.problems
    assert problem.where == "odd.safetensors (ss_clip_skip)"
    assert problem.found == "99 with a text encoder of 12 layers"
    assert problem.fix.startswith("write clip_skip=1")


def test_sdxl_ignores_what_files_say_of_clip_skip(painter: Painter) -> None:
    lora(Path("anime.safetensors"), 0.3, clip_skip=2)
    (plan,) = compose_plots(with_named_files(["anime.safetensors", "one.safetensors", *SMALL])).runs
    options = plan.plot.options
    sdxl = replace(plan.plot, options=replace(options, base=replace(options.base, family="sdxl")))
    render_run.check_files(sdxl)
    with pytest.raises(ConfigError, match="LoRA files that say 1 and 2"):
        render_run.check_files(plan.plot)


def test_what_is_left_out_of_a_file_is_said(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(lora(Path("word.safetensors"), 0.3))
    write_lora(Path("word.safetensors"), {**tensors, "bundle_emb.mia.string": torch.ones(1, 8)})
    assert run("word.safetensors") == 0
    output = capsys.readouterr()
    assert "the embedding mia in it is left out" in output.out + output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.safetensors",), ("nowhere.safetensors", "nothing")),
        (("one.safetensors", "x={sampler:[DDIMM]}"), ("DDIMM", "DDIM")),
        (("one.safetensors", "x={seed:[1,1]}"), ("none twice",)),
        (("one.safetensors", "x={colour:[1]}"), ("colour", "strength")),
        (("one.safetensors", "x=seed", "y=seed"), ("seed twice",)),
        (("one.safetensors", "x={strength:[much]}"), ("much",)),
        (("one.safetensors", "y=epoch"), ("runs/SWEEP/RUN",)),
        (("run-1", "y={epoch:[7]}"), ("epoch 7", "0, 1, 2")),
        (("one.safetensors", "x={sr:[green,blue]}"), ("green", "has not")),
        (("one.safetensors", "x={sr:[red]}"), ("replace",)),
        (("x={strength:[0,1]}",), ("a LoRA",)),
        (("prompts.prompts.a.text=__hue__",), ("__hue__", "without values")),
        (("+wildcards.a=[__a__]", "prompts.prompts.a.text=__a__"), ("contains itself",)),
        (("+wildcards.a=[b]",), ("no prompt has",)),
        (("wildcards_dir=absent",), ("absent",)),
        (("prompts.prompts.a.text='<lora:three:1>'", "y=null"), ("three", "none")),
        (("one.safetensors", "prompts.prompts.a.text='<lora:one:1>'"), ("y=null",)),
        (("one.safetensors", "prompts.prompts.a.text='x AND y'"), ("AND",)),
        (("one.safetensors", "render.sampler=Eulr"), ("Euler",)),
        (("one.safetensors", "base=sdxl", "base.path=x", "clip_skip=2"), ("last layer but one",)),
        (("x={seed:1-900}", "y={steps:1-900}"), ("20000",)),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    painter: Painter,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    words: Sequence[str],
) -> None:
    text = problems(capsys, *arguments)
    assert all(word in text for word in words), text
    assert not painter.requests


def test_all_mistakes_are_told_at_once(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    text = problems(capsys, "gone.safetensors", "x={sampler:[no]}", "y={steps:[0]}", "clip_skip=0")
    assert "4 problems" in text


def test_files_that_are_no_loras_and_loras_of_other_bases(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.safetensors").write_bytes(b"no")
    write_lora(Path("other.safetensors"))
    assert "bad.safetensors" in problems(capsys, "bad.safetensors", "one.safetensors")
    assert run("other.safetensors") == 1
    assert "the base it was trained on" in capsys.readouterr().err


def test_out_of_memory_is_a_tile_and_not_the_end(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.error = MemoryError()
    assert run("one.safetensors") == 0
    assert "out of memory" in next(Path("renders/plots").glob("*/plot.json")).read_text()
    painter.error = None
    assert run("one.safetensors") == 0
    assert len(levels()) == 4


def test_files_may_stand_anywhere_in_the_command() -> None:
    words = with_named_files(["a b.safetensors", "-m", "x=seed", "--config-dir", "conf", "it's"])
    assert words == ["-m", "x=seed", "--config-dir", "conf", r"lora=['a b.safetensors','it\'s']"]
    assert with_named_files(["--cfg", "job"]) == ["--cfg", "job"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seed": "1-3"}, (1, 2, 3)),
        ({"steps": "10-30 (+10)"}, (10, 20, 30)),
        ({"strength": "0-1 [5]"}, (0, 0.25, 0.5, 0.75, 1)),
        ({"cfg_scale": [1, "2-3"]}, (1, 2, 3)),
        ({"seed": 4}, (4,)),
    ],
)
def test_ranges_are_written_as_in_a1111(given: Any, expected: tuple[float, ...]) -> None:
    noted: list[Any] = []
    axis = read_axis("x", given, noted)
    assert noted == []
    assert axis is not None
    assert axis.values == expected
