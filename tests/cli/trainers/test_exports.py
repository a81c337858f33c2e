"""From here to other trainers: files that their parsers take, and sentences for the rest."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from optbench.cli.trainers import export_command, formats
from optbench.cli.trainers.export_command import EXPORTERS
from optbench.cli.trainers.exported import Exported, Run, files_of, unscaled
from optbench.cli.trainers.imported import Imported
from optbench.config import rules
from optbench.storage import resources
from optbench.storage.files import write_atomic
from optbench.storage.rundir import RunDir
from tests.builders.kohya import tree_of

SCHEMAS = json.loads((Path(__file__).parents[2] / "parity" / "schemas.json").read_text())
BACK = ("onetrainer", "ai-toolkit", "simpletuner")
RECIPES = sorted(path.stem for path in (resources.conf_dir() / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(  # adafactor's goes with its optimizer alone
    path.stem
    for path in (resources.conf_dir() / "lr_scheduler").glob("*.yaml")
    if path.stem != "adafactor"
)


@pytest.fixture(autouse=True)
def _no_checkpoint_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "check_base", lambda _: [])


def folder_of(root: Path) -> Path:
    for name in ("3_cat", "5_dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "1.png").touch()
    return root


def exported(trainer: str, root: Path, *overrides: str) -> Exported:
    tree = tree_of(
        "base=sdxl", "base.path=/models/xl", "dataset=folder", f"dataset.dir={root}",
        "prompts=folder", "prompts.prompts.a.text=a cat", *overrides,
    )  # fmt: skip
    return EXPORTERS[trainer](Run(tree, "my-run", total_steps=120))


def leaves(tree: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            yield from leaves(value, known, f"{name}.")
        else:
            yield name, value


def checked(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    """Hold one written option against what the trainer's own schema says of it."""
    assert name in schema, f"no option {name}"
    type_, _, choices = schema[name]
    if value is None:
        return
    kinds: dict[str, Any] = {
        "bool": bool, "float": (int, float), "int": int, "str": str, "enum": str,
        "list": list, "table": Mapping,
    }  # fmt: skip
    if type_ in kinds:
        assert isinstance(value, kinds[type_]), (name, value)
        assert type_ == "bool" or not isinstance(value, bool), (name, value)
    if choices:
        assert str(value) in choices, (name, value)


def check_files(trainer: str, script: str) -> None:
    """Hold an exported script against the schema of its trainer."""
    schema, files = SCHEMAS[trainer], dict(files_of(script))
    if trainer == "onetrainer":
        tree = json.loads(files["optbench.json"])
        for part in ("concepts", "samples"):
            for one in tree.pop(part):
                for name, value in leaves(one, schema, f"{part}."):
                    if not name.endswith("__version"):
                        checked(name, value, schema)
        assert tree.pop("__version") == 11
        for name, value in leaves(tree, schema):
            checked(name, value, schema)
    elif trainer == "ai-toolkit":
        job = OmegaConf.to_container(OmegaConf.create(files["optbench.yaml"]))
        assert isinstance(job, dict)
        process = job["config"]["process"][0]
        for one in process.pop("datasets"):
            for key, value in one.items():
                checked(f"datasets.{key}", value, schema)
        for name, value in leaves(process, schema):
            checked(name, value, schema)
    elif trainer == "simpletuner":
        for name, value in json.loads(files["optbench-config.json"]).items():
            checked(name, value, schema)
        for one in json.loads(files["optbench-data.json"]):
            for key, value in one.items():
                checked(f"datasets.{key}", value, schema)
    else:
        command = script.partition("accelerate launch")[2]
        words = shlex.split(command)
        for word in words:
            name = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and name != "num_cpu_threads_per_process":
                type_, _, choices = schema[name]
                value = word.partition("=")[2]
                assert ("=" in word) == (type_ not in ("flag", "strs")) or name in (
                    *("dit", "network_module"),
                ), word
                if type_ in ("int", "float") and value:
                    {"int": int, "float": float}[type_](value)
                assert not choices or value in choices, word
        for name, text in files.items():
            data = tomllib.loads(text)
            assert name == "optbench-data.toml"
            for one in [data["general"], *data.get("datasets", [])]:
                for key, value in one.items():
                    checked(f"datasets.{key}", value, schema)


OTHERS = sorted(set(EXPORTERS) - {"kohya"})


@pytest.mark.parametrize("trainer", OTHERS)
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer=lion", "lr_scheduler=cosine_with_restarts", "network=locon", "dropout=all"),
        ("optimizer=prodigy", "lr_scheduler=constant", "train.max_steps=77", "loss=min_snr"),
        ("optimizer=adafactor_auto", "lr_scheduler=adafactor", "train.max_grad_norm=0"),
        ("loss=huber", "dataset.flip_aug=true", "network.dora=true", "lr_scheduler=polynomial"),
        ("loss=multires", "base.v_parameterization=true", "loss.zero_terminal_snr=true"),
        ("lr_scheduler=constant_with_warmup", "lr_scheduler.warmup_steps=0.1", "render=off"),
        ("dataset.resolution=[768,1024]", "dataset.enable_bucket=false",
         "dataset.bucket_no_upscale=false", "network.train_text_encoder=false"),
    ],
)  # fmt: skip
def test_the_trainers_schema_takes_what_is_written(
    trainer: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    found = exported(trainer, folder_of(tmp_path / "data"), *overrides)
    check_files(trainer, found.script)
    assert subprocess.run(["sh", "-n"], input=found.script, text=True, check=False).returncode == 0
    assert found.lost


@pytest.mark.parametrize("trainer", OTHERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_written_or_said(trainer: str, recipe: str, tmp_path: Path) -> None:
    found = exported(
        trainer, tmp_path, f"optimizer={recipe}", "lr_scheduler=constant", "train.max_grad_norm=0"
    )
    check_files(trainer, found.script)


@pytest.mark.parametrize("trainer", OTHERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_written_or_said(trainer: str, schedule: str, tmp_path: Path) -> None:
    found = exported(trainer, tmp_path, f"lr_scheduler={schedule}")
    check_files(trainer, found.script)
    if schedule in ("piecewise", "inverse_sqrt", "warmup_stable_decay") and trainer != "musubi":
        assert any(schedule in sentence for sentence in found.lost)


def back(trainer: str, script: str, folder: Path) -> Imported:
    """Return what an exported script means when it is imported again."""
    paths = []
    for name, text in files_of(script):
        (folder / name).write_text(text)
        paths.append(folder / name)
    return formats.convert([formats.read(path) for path in paths])[0]


# Settings of each section that come back as they went; others cannot be said there.
KEPT = {
    "network": ("dim", "alpha", "train_unet", "train_text_encoder"),
    "train": ("batch_size", "gradient_accumulation", "mixed_precision", "max_grad_norm",
              "gradient_checkpointing"),
    "loss": ("loss_type", "min_snr_gamma", "noise_offset"),
    "dataset": ("dir", "num_repeats", "shuffle_caption", "caption_dropout_rate",
                "caption_extension", "enable_bucket"),
    "optimizer": ("name", "lr"),
    "lr_scheduler": ("name", "warmup_steps"),
}  # fmt: skip
CANNOT = {
    "simpletuner": {"network.train_text_encoder"},
    "ai-toolkit": set(),
    "onetrainer": set(),
}


@given(
    trainer=st.sampled_from(BACK),
    recipe=st.sampled_from(["adamw", "lion8bit", "adamw8bit"]),
    dim=st.integers(1, 128),
    share=st.sampled_from([0.5, 1.0]),
    batch=st.integers(1, 8),
    accumulated=st.integers(1, 4),
    precision=st.sampled_from(["no", "fp16", "bf16"]),
    clip=st.sampled_from([0.0, 0.5, 1.0]),
    gamma=st.sampled_from([None, 5.0]),
    offset=st.sampled_from([None, 0.05]),
    dropout=st.sampled_from([0.0, 0.1]),
    warmup=st.integers(1, 50),
    schedule=st.sampled_from(["constant", "constant_with_warmup"]),
    text=st.booleans(),
    rate=st.sampled_from([1e-4, 3e-5]),
)
def test_there_and_back_is_the_same_training(
    tmp_path_factory: pytest.TempPathFactory, trainer: str, recipe: str, dim: int, share: float,
    batch: int, accumulated: int, precision: str, clip: float, gamma: float | None,
    offset: float | None, dropout: float, warmup: int, schedule: str, text: bool, rate: float,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("back")
    data = folder / "data"
    data.mkdir()
    (data / "1.png").touch()
    overrides = [
        "base=sdxl", "base.path=/models/xl", "dataset=folder", f"dataset.dir={data}",
        "dataset.num_repeats=4", "dataset.shuffle_caption=false", "dataset.keep_tokens=0",
        "prompts=folder", "prompts.prompts.a.text=a cat", f"optimizer={recipe}",
        f"optimizer.lr={rate}", "optimizer.text_encoder_lr=null", f"network.dim={dim}",
        f"network.alpha={dim * share}", f"train.batch_size={batch}",
        f"train.gradient_accumulation={accumulated}", f"train.mixed_precision={precision}",
        f"train.max_grad_norm={clip}", f"loss.min_snr_gamma={'null' if gamma is None else gamma}",
        f"loss.noise_offset={'null' if offset is None else offset}",
        f"dataset.caption_dropout_rate={dropout}", f"lr_scheduler={schedule}",
        "validate.holdout=none", f"network.train_text_encoder={str(text).lower()}",
        *([f"lr_scheduler.warmup_steps={warmup}"] if schedule != "constant" else []),
    ]  # fmt: skip
    before = tree_of(*overrides)
    script = EXPORTERS[trainer](Run(copy.deepcopy(before), "my-run", total_steps=120)).script
    check_files(trainer, script)
    after = tree_of(*back(trainer, script, folder).overrides)
    for section, keys in KEPT.items():
        for key in keys:
            if f"{section}.{key}" not in CANNOT[trainer]:
                assert after[section][key] == before[section][key], f"{section}.{key}"
    for name, value in before["optimizer"]["args"].items():
        assert after["optimizer"]["args"][name] == value, name


def test_what_cannot_be_said_is_said(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data")
    overrides = ("network.scale_weight_norms=1", "lr_scheduler=piecewise", "loss=huber")
    for trainer in OTHERS:
        lost = "\n".join(exported(trainer, data, *overrides).lost)
        assert "piecewise" in lost
        assert "scale_weight_norms" in lost or trainer == "musubi"
        assert "huber" in lost or trainer in ("simpletuner", "musubi")
    tiny = EXPORTERS["ai-toolkit"](Run(tree_of(), "demo"))
    assert "no other trainer loads the embedded base" in tiny.script
    assert "how many the run has is not known yet" in tiny.script


def test_the_very_class_is_named_before_another_form_of_it(tmp_path: Path) -> None:
    for recipe, name in (("adamw", "torch-adamw"), ("stableadamw", "optimi-stableadamw")):
        found = exported("simpletuner", tmp_path, f"optimizer={recipe}")
        assert f'"optimizer": "{name}"' in found.script
    unknown = exported("simpletuner", tmp_path, "optimizer=came", "train.max_grad_norm=0")
    assert '"optimizer": "torch-adamw"' in unknown.script
    assert any("optimizer=came" in sentence for sentence in unknown.lost)


def test_folders_arrive_with_their_repeats(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data")
    concepts = json.loads(dict(files_of(exported("onetrainer", data).script))["optbench.json"])
    assert [(one["name"], one["balancing"]) for one in concepts["concepts"]] == [
        ("3_cat", 3.0),
        ("5_dog", 5.0),
    ]
    found = back("simpletuner", exported("simpletuner", data).script, tmp_path)
    assert f"dataset.dir={data}" in found.overrides


def test_the_command_writes_for_each_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    write_atomic(run.config_path, OmegaConf.to_yaml(OmegaConf.create(tree_of())).encode())
    for trainer in EXPORTERS:
        for words in ([f"--for={trainer}"], ["--for", trainer]):
            assert export_command.main([str(run.path), *words]) == 0
            assert capsys.readouterr().out.startswith("#!/bin/sh\n")
    assert export_command.main([str(run.path)]) == 0
    assert "sd-scripts" in capsys.readouterr().out
    assert export_command.main([str(run.path), "--for=nobody"]) == 2
    assert "onetrainer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lr_role", "lr_scale", "lr_scales", "words"),
    [
        ("manual", 40.0, {"mine": 40.0}, "by 40 "),
        ("manual", 60.0, {"mine": None}, "by 60 "),
        ("manual", 1.0, {}, ""),
        ("multiplier", 1.5, {"mine": 1.5}, "by 1.5 "),
        ("multiplier", 60.0, {"mine": None}, ""),  # no such recipe's rate is multiplied by it
        ("automatic", 60.0, {}, ""),
    ],
)
def test_what_suited_the_embedded_base_is_taken_out_of_the_rates(
    lr_role: str, lr_scale: float, lr_scales: dict[str, float | None], words: str
) -> None:
    config = {
        "base": {"lr_scale": lr_scale, "lr_scales": lr_scales},
        "optimizer": {"name": "mine", "traits": {"lr_role": lr_role}},
    }
    sentence = unscaled(config)
    assert words in sentence
    assert bool(sentence) == bool(words)
