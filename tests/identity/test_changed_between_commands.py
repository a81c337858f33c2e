"""Change X between two commands that are spelled alike: what becomes of the run of the first?

Either it is trained again, under another name, or measured and rendered again in its folder, or
what differs is a fact of the run that tables and the report's first page read. Never nothing.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from optbench import analysis
from optbench.cli import regularize
from optbench.cli.render.plan import compose_plots
from optbench.cli.render.run import _planned_images
from optbench.cli.resize import run as resize_run
from optbench.cli.resize.plan import plan_resizes
from optbench.config import identity
from optbench.config.build import config_yaml
from optbench.config.compose import compose_runs
from optbench.errors import OptbenchError
from optbench.launch import guard
from optbench.metrics.contract import Measured
from optbench.metrics.measure import metric_identity
from optbench.render.prompts import cells_of
from optbench.storage import files, provenance, rundir
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan
from tests.builders.lora_files import write_lora

pytestmark = pytest.mark.usefixtures("fake_assets")
RECIPE = """\
defaults: [adamw, _self_]
name: mine
_target_: optimizer_of_mine.Mine
args: {{weight_decay: {decay}}}
"""


@dataclass
class World:
    """A working folder with everything a command names, and the command."""

    root: Path
    monkeypatch: pytest.MonkeyPatch

    def plan(self, *extra: str) -> RunPlan:
        (plan,) = compose_runs([*COMMAND, *extra]).runs
        return plan

    def edit(self, name: str, text: str) -> None:
        path = self.root / name
        path.write_text(text)

    def finish(self, plan: RunPlan) -> None:
        """Leave what a finished run leaves."""
        run = rundir.RunDir(plan.run_dir)
        files.write_atomic(run.config_path, config_yaml(plan.config))
        steps = [{"step": step + 1, "epoch": 1, "loss": 0.5} for step in range(plan.total_steps)]
        files.append_rows(run.steps_path, steps)
        files.append_rows(run.epochs_path, [{"epoch": 1, "step": len(steps), "mean_loss": 0.5}])
        files.append_rows(run.validation_path, [{"epoch": 1}])
        session = provenance.collect(
            packages=["torch"],
            command=["optbench"],
            extra={
                "device": plan.config.train.device,
                "num_threads": plan.config.train.num_threads,
                "from_step": 0,
                "to_step": 1,
            },
        )
        facts = {
            "weights_fingerprint": plan.weights_fingerprint,
            "dataset": {"fingerprint": plan.dataset.fingerprint},
            "base": {"fingerprint": plan.base_fingerprint},
            "optimizer": {"package": "torch"},
        }
        provenance.begin_session(run.provenance_path, session, facts)
        for path in guard.image_paths(run, plan.config):
            files.write_atomic(path, b"")
        rundir.write_status(run.path, "done", made_as=made_as(plan))


COMMAND = (
    "--config-dir=recipes",
    "optimizer=mine",
    *(
        "dataset=folder",
        "dataset.dir=data",
        "dataset.resolution=[64,64]",
        "dataset.min_bucket_reso=64",
    ),
    *("validate=default", "validate.dir=held"),
    *("base.path=base", "base.vae=vae", "train.num_threads=null", "sweep_name=s"),
)


@pytest.fixture
def world(fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    root = tmp_path / "work"
    for folder, colours in (("data", (10, 90)), ("held", (200,))):
        place = root / folder / "1_thing"
        place.mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", (64, 64), (colour, 90, 20)).save(place / f"{colour}.png")
            (place / f"{colour}.txt").write_text("a thing")
    shutil.copytree(fake_assets / "tiny", root / "base")
    (root / "vae").mkdir()
    (root / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8]}')
    (root / "recipes" / "optimizer").mkdir(parents=True)
    (root / "recipes" / "optimizer" / "mine.yaml").write_text(RECIPE.format(decay=0.1))
    (root / "optimizer_of_mine.py").write_text("from torch.optim import AdamW as Mine\n")
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(identity, "device_kind", lambda name: "cpu")
    monkeypatch.setattr(identity, "default_num_threads", lambda: 1)
    return World(root, monkeypatch)


def nothing(world: World) -> None:
    pass


def caption(world: World) -> None:
    world.edit("data/1_thing/10.txt", "another thing")


def image(world: World) -> None:
    Image.new("RGB", (64, 64), (11, 90, 20)).save(world.root / "data/1_thing/10.png")


def held_out_image(world: World) -> None:
    Image.new("RGB", (64, 64), (201, 90, 20)).save(world.root / "held/1_thing/200.png")


def held_out_caption(world: World) -> None:
    world.edit("held/1_thing/200.txt", "another thing")


def base_file(world: World) -> None:
    world.edit("base/unet/config.json", '{"other": 1}')


def base_file_of_equal_size_and_date(world: World) -> None:
    path = world.root / "base/unet/config.json"
    before = path.stat()
    path.write_text("[]")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def vae(world: World) -> None:
    world.edit("vae/config.json", '{"block_out_channels": [8, 8, 8, 8], "other": 1}')


def optimizer_source(world: World) -> None:
    world.edit("optimizer_of_mine.py", "from torch.optim import SGD as Mine\n")


def recipe_file(world: World) -> None:
    world.edit("recipes/optimizer/mine.yaml", RECIPE.format(decay=0.2))


def device(world: World) -> None:
    world.monkeypatch.setattr(identity, "device_kind", lambda name: "cuda")


def threads(world: World) -> None:
    world.monkeypatch.setattr(identity, "default_num_threads", lambda: 8)


def cleaning(world: World) -> None:
    """Another version of how prompts and captions are cleaned."""
    world.monkeypatch.setattr("optbench.training.made_as.CLEANING_VERSION", 99)


def grammar(world: World) -> None:
    world.monkeypatch.setattr("optbench.training.made_as.GRAMMAR_VERSION", 99)


TRAINED_AGAIN = (
    *(caption, image, base_file, base_file_of_equal_size_and_date, vae),
    *(optimizer_source, recipe_file, device, threads),
)
MADE_AGAIN = (held_out_image, held_out_caption, cleaning, grammar)


def test_a_run_is_finished_while_nothing_changed(world: World) -> None:
    plan = world.plan()
    world.finish(plan)
    again = world.plan()
    assert again.name == plan.name
    assert guard.is_finished(again)


@pytest.mark.parametrize("change", TRAINED_AGAIN)
def test_what_changes_weights_is_trained_again_under_another_name(
    world: World, change: Callable[[World], None]
) -> None:
    before = world.plan()
    world.finish(before)
    change(world)
    after = world.plan()
    assert after.name != before.name
    assert after.weights_fingerprint != before.weights_fingerprint
    assert not guard.is_finished(after)


@pytest.mark.parametrize("change", MADE_AGAIN)
def test_what_changes_losses_or_images_makes_them_again_in_the_same_folder(
    world: World, change: Callable[[World], None]
) -> None:
    before = world.plan()
    world.finish(before)
    change(world)
    after = world.plan()
    assert after.name == before.name
    assert not guard.is_finished(after)


FACTS: dict[str, tuple[Callable[[World], None], tuple[str, ...]]] = {
    "caption": (caption, ("data_fingerprint",)),
    "base file": (base_file, ("base_fingerprint",)),
    "device": (device, ("device_kind",)),
    "threads": (threads, ("threads",)),
    "torch": (
        lambda world: world.monkeypatch.setattr(
            provenance, "package_version", lambda name: "9.9" if name == "torch" else "1"
        ),
        ("torch_version", "optimizer_version"),
    ),
    "optbench": (
        lambda world: world.monkeypatch.setattr(
            provenance, "package_version", lambda name: "7.7" if name == "optbench" else "1"
        ),
        ("optbench_version",),
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_what_two_runs_were_made_with_can_be_read_beside_them(world: World, name: str) -> None:
    change, columns = FACTS[name]
    world.finish(world.plan("network.dim=4"))
    change(world)
    world.finish(world.plan("network.dim=8"))
    runs = analysis.load("runs/s").runs
    for column in columns:
        assert runs[column].nunique(dropna=False) == 2, column


def lora_file(world: World) -> None:
    write_lora(world.root / "big.safetensors", seed=2)


RESIZE = (
    *("source=big.safetensors", "new_dim=2", "base.path=base", "base.vae=vae", "sweep_name=s"),
    *(
        "dataset=folder",
        "dataset.dir=data",
        "dataset.resolution=[64,64]",
        "dataset.min_bucket_reso=64",
        "validate.dir=held",
    ),
)


@pytest.mark.parametrize(
    ("change", "is_done"),
    [
        (nothing, True),
        (optimizer_source, True),
        *((change, False) for change in (base_file, vae, caption, image)),
        *((change, False) for change in (held_out_image, held_out_caption, cleaning, lora_file)),
    ],
)
def test_a_resize_is_evaluated_again_where_what_it_is_judged_by_changed(
    world: World, change: Callable[[World], None], is_done: bool
) -> None:
    write_lora(Path("big.safetensors"))
    (plan,) = plan_resizes(RESIZE).runs
    run = rundir.RunDir(plan.run_dir)
    files.write_atomic(run.config_path, resize_run.config_yaml(plan))
    run.lora_dir.mkdir()
    write_lora(run.lora_path(None))
    for prompt in plan.options.prompts.prompts:
        for cell in cells_of(prompt, plan.options.render, epoch=1):
            files.write_atomic(run.image_path(cell), b"")
    rundir.write_status(run.path, "done", is_examined=True, made_as=resize_run._made_as(plan))
    change(world)
    (again,) = plan_resizes(RESIZE).runs
    assert resize_run.is_done(again) is is_done


def test_a_resized_folder_of_another_source_is_not_this_resize(world: World) -> None:
    write_lora(Path("big.safetensors"))
    command = ["source=big.safetensors", "new_dim=2", "render=off", "validate=off"]
    (plan,) = plan_resizes(command).runs
    run = rundir.RunDir(plan.run_dir)
    files.write_atomic(run.config_path, resize_run.config_yaml(plan))
    run.lora_dir.mkdir()
    write_lora(run.lora_path(None))
    rundir.write_status(run.path, "done", is_examined=False)
    assert resize_run.is_done(plan)
    files.write_json(run.provenance_path, {"weights_fingerprint": "of-another"})
    assert not resize_run.is_done(plan)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [(nothing, True), (caption, True), (base_file, False), (vae, False), (lora_file, False)],
)
def test_a_cell_of_a_plot_is_of_one_base_and_one_lora(
    world: World, change: Callable[[World], None], is_same: bool
) -> None:
    write_lora(Path("big.safetensors"))

    def cells() -> set[str]:
        (plan,) = compose_plots(["big.safetensors", "base.path=base", "base.vae=vae"]).runs
        return {image.path.name for image in _planned_images(plan.plot).values()}

    before = cells()
    change(world)
    assert (cells() == before) is is_same
    if change is base_file:
        assert not cells() & before, "none is reused"


@pytest.mark.parametrize(
    ("change", "is_refused"), [(nothing, False), (caption, False), (base_file, True), (vae, True)]
)
def test_class_images_of_another_base_are_not_added_to(
    world: World, change: Callable[[World], None], is_refused: bool
) -> None:
    command = ["class_words=thing", "num_pictures=2", "base.path=base", "base.vae=vae"]
    (plan,) = regularize.compose_images(command).runs
    files.write_json(
        plan.run_dir / regularize._SETTINGS_FILE, regularize._image_settings(plan.options)
    )
    files.write_atomic(plan.image_path(0), b"")
    change(world)
    if is_refused:
        with pytest.raises(OptbenchError, match="another base model"):
            regularize.compose_images(command)
    else:
        regularize.compose_images(command)


def test_a_text_in_dollar_brackets_is_the_same_text_in_a_process_of_its_own(
    world: World,
) -> None:
    world.monkeypatch.setenv("A_SECRET", "hunter2")
    text = "${oc.env:A_SECRET}"
    plan = world.plan(f"dataset.caption_prefix='\\{text}'")
    assert plan.config.dataset.caption_prefix == text
    # As a parent hands the run to its worker, and as a run's folder stores it.
    sent = pickle.loads(pickle.dumps(plan))  # noqa: S301 - its own
    assert sent == plan
    world.finish(plan)
    assert guard.is_finished(sent)
    stored = rundir.read_config(rundir.RunDir(plan.run_dir))
    assert stored["dataset"]["caption_prefix"] == text
    for name in ("config.yaml", "provenance.json", "status.json"):
        assert "hunter2" not in (plan.run_dir / name).read_text()


@pytest.mark.parametrize("text", ["${", "${x", "$", "${oc.env:NO_SUCH_VARIABLE}", "a}b", "\\${x}"])
def test_a_text_that_looks_like_an_interpolation_has_one_name(world: World, text: str) -> None:
    config = dataclasses.replace(
        world.plan().config,
        dataset=dataclasses.replace(world.plan().config.dataset, caption_prefix=text),
    )
    plans = [identity.plan_run(config, sweep_dir=Path("runs/s")) for _ in range(2)]
    assert plans[0].name == plans[1].name != world.plan().name


class Model:
    """A metric with a model file."""

    reference = "none"
    bases = ()
    meanings: dict[str, Any] = {}

    def __init__(self, path: str) -> None:
        self.settings = {"path": path}

    def measure(self, picture: object, others: object) -> dict[str, Measured]:
        return {}


def test_a_metrics_model_is_what_is_in_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"1")
    first = metric_identity(Model(str(model)), cache_dir=None)  # type: ignore[arg-type]
    moved = model.rename(tmp_path / "moved")
    assert metric_identity(Model(str(moved)), cache_dir=None) == first  # type: ignore[arg-type]
    (moved / "weights.bin").write_bytes(b"2")
    assert metric_identity(Model(str(moved)), cache_dir=None) != first  # type: ignore[arg-type]
