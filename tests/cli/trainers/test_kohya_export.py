"""From here to kohya's trainer: a command it accepts, and a sentence for what is not in it."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from optbench.cli.trainers import export_command
from optbench.cli.trainers.exported import Exported
from optbench.cli.trainers.kohya import option_names
from optbench.cli.trainers.kohya.export_script import export
from optbench.cli.trainers.kohya.import_script import convert
from optbench.cli.trainers.kohya.read_script import read_training
from optbench.cli.trainers.options import options
from optbench.config import rules
from optbench.optim.schedules import multiplier
from optbench.storage import resources
from optbench.storage.files import write_atomic
from optbench.storage.rundir import RunDir
from tests.builders.kohya import config_of, imported_config, tree_of

SAME = ("dataset", "network", "lr_scheduler", "train", "loss", "seed")
OURS_ALONE = ("device", "num_threads", "name")
RECIPES = sorted(path.stem for path in (resources.conf_dir() / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (resources.conf_dir() / "lr_scheduler").glob("*.yaml"))
PARSER = json.loads((Path(__file__).resolve().parents[2] / "parity" / "options.json").read_text())[
    "cases"
]


@pytest.fixture(autouse=True)
def _no_checkpoint_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "check_base", lambda _: [])


def exported(*overrides: str) -> Exported:
    return export(tree_of(*overrides), name="my-run")


def imported_tree(script: str, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "train.sh"
    file.write_text(script)
    overrides = convert(read_training(file), folder=tmp_path).overrides
    return tree_of(*overrides, "base=tiny", "dataset=mirelle", "prompts=mirelle", *overrides[3:])


@pytest.mark.parametrize("recipe", sorted(option_names.SPELLED))
def test_there_and_back_is_the_same_training(recipe: str, tmp_path: Path) -> None:
    overrides = [f"optimizer={recipe}", "lr_scheduler=constant", "train.max_grad_norm=0"]
    before = tree_of(*overrides)
    after = imported_tree(export(before, name="my-run").script, tmp_path)
    for section in SAME:
        if not isinstance(before[section], dict):
            assert after[section] == before[section]
            continue
        for key in before[section].keys() - OURS_ALONE:
            assert after[section][key] == before[section][key], f"{section}.{key}"
    for key in ("_target_", "lr", "unet_lr", "text_encoder_lr", "args"):
        assert after["optimizer"][key] == before["optimizer"][key], key


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["network=locon", "network.down_lr_weight=[0,0,0,0,1,1,1,1,1,1,1,1]"],
            ["conv_dim=8", "conv_alpha=1.0",
             f"down_lr_weight=0.0,0.0,0.0,0.0{',1.0' * 8}"],
        ),
        (
            [f"network.block_dims=[{','.join(map(str, range(25)))}]", "network.rslora=true"],
            [f"block_dims={','.join(map(str, range(25)))}"],
        ),
        (["dropout=all", "scale_weight_norms=one"], ["--network_dropout=0.1", "rank_dropout=0.1"]),
        (["network.train_text_encoder=false"], ["--network_train_unet_only"]),
        (["train.max_steps=77"], ["--max_train_steps=77"]),
        (["lr_mult=0.5", "optimizer.unet_lr=0.25"], ["--unet_lr=0.125"]),
        (["lr_scheduler=cosine_with_restarts", "lr_scheduler.num_cycles=20"],
         ["--lr_scheduler_num_cycles=20"]),
        (["lr_scheduler=constant_with_warmup", "lr_scheduler.warmup_steps=0.1"],
         ["--lr_warmup_steps=0.1"]),
        (["lr_scheduler=constant_with_warmup", "lr_scheduler.warmup_steps=10"],
         ["--lr_warmup_steps=10"]),
        (["lr_scheduler=piecewise", "lr_scheduler.step_rules='1:10,0.1:20,0.01'"],
         ["--lr_scheduler=piecewise_constant"]),
        (["lr_scheduler=warmup_stable_decay"], ["--lr_scheduler=warmup_stable_decay"]),
        (["loss=multires"],
         ["--multires_noise_iterations=8", "--multires_noise_discount=0.3", "--sdpa"]),
        (["loss=huber", "loss.huber_schedule=constant", "loss.huber_scale=2"],
         ["--loss_type=huber", "--huber_schedule=constant", "--huber_c=0.1", "--huber_scale=2.0"]),
        (["loss.noise_offset=0.1", "loss.noise_offset_random_strength=true",
          "loss.min_snr_gamma=5", "loss.max_timestep=900", "train.gradient_checkpointing=true"],
         ["--noise_offset=0.1", "--noise_offset_random_strength", "--max_timestep=900",
          "--gradient_checkpointing"]),
    ],
)  # fmt: skip
def test_settings_there_and_back(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    script = exported(*overrides).script
    found = shlex.split(script.partition("accelerate launch")[2])
    assert set(words) <= set(found)
    before, after = tree_of(*overrides), imported_tree(script, tmp_path)
    lr_mult = before["lr_mult"]
    rates = {key: before["optimizer"][key] for key in ("lr", "unet_lr", "text_encoder_lr")}
    assert {key: after["optimizer"][key] for key in rates} == pytest.approx(
        {key: None if rate is None else rate * lr_mult for key, rate in rates.items()}
    )
    # With steps given, epochs are as many as the steps may need.
    ignored = {*OURS_ALONE, "rslora", *(["epochs"] if before["train"]["max_steps"] else [])}
    for section in ("network", "lr_scheduler", "train", "loss"):
        for key in before[section].keys() - ignored:
            assert after[section][key] == before[section][key], f"{section}.{key}"


def test_the_script_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    text = 'it\'s a "test" $HOME `date` END_OF_PROMPTS\\'
    tree = tree_of()
    tree["prompts"]["prompts"]["a"]["text"] = text
    tree["dataset"]["dir"] = "/data/my 'own' pictures; rm -rf $HOME"
    script = export(tree, name="my run").script
    (tmp_path / "accelerate").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--train_data_dir=/data/my 'own' pictures; rm -rf $HOME" in done.stdout.splitlines()
    assert (tmp_path / "prompts.txt").read_text().startswith(text)


def test_what_kohya_cannot_be_told_is_said() -> None:
    lost = "\n".join(exported("optimizer=emonavi", "lr_scheduler=rex").lost)
    assert "lr_scheduler=rex" in lost
    assert "needs the loss at every step" in lost
    assert "embedded base" in lost
    assert "network.dora=true" in "\n".join(exported("network.dora=true").lost)
    assert "group_args" in "\n".join(exported("optimizer=muon").lost)


def arguments(script: str) -> dict[str, list[str]]:
    """Return the values of each option of an exported command, as its shell hands them over."""
    command = script[script.index("accelerate launch") :].replace("\\\n", " ")
    given: dict[str, list[str]] = {}
    name = ""
    for word in shlex.split(command)[5:]:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            assert name not in given, f"{name} twice"
            given[name] = [value] if equals else []
        else:
            given[name].append(word)
    return given


def check_accepted(script: str) -> dict[str, list[str]]:
    """Check a command against the facts of the trainer's parser; return its options."""
    given = arguments(script)
    for name, values in given.items():
        action, type_, _, num_values, choices = PARSER[name]
        if action == "StoreTrueAction":
            assert values == [], name
        elif num_values == "*":
            assert values, name
        else:
            assert len(values) == 1, name
        for value in values:
            if type_ == "int":
                int(value)
            elif type_ == "float":
                float(value)
            elif type_ == "int_or_float":
                int(value) if float(value) >= 1 else float(value)
            assert not choices or value in choices, name
    for name in ("optimizer_args", "lr_scheduler_args"):
        for word in given.get(name, ()):
            _, value = word.split("=")  # exactly one, there
            ast.literal_eval(value)
    for word in given.get("network_args", ()):
        key, value = word.split("=", 1)
        whole = key in ("conv_dim", "block_dims", "conv_block_dims")
        is_shape = key in ("down_lr_weight", "up_lr_weight") and "," not in value
        for item in [] if is_shape else value.split(","):
            int(item) if whole else float(item)
        assert not is_shape or not value.replace(".", "").isdigit(), key
    if "cache_latents" in given:
        assert not {"color_aug", "random_crop"} & set(given)
    return given


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_accepted(recipe: str) -> None:
    given = check_accepted(exported(f"optimizer={recipe}").script)
    kind = given["optimizer_type"][0]
    assert "." in kind or kind.lower() in option_names.RECIPES


@pytest.mark.parametrize("recipe", ["adamw", "adafactor_auto", "prodigyplus"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_accepted_and_gives_the_same_rates(schedule: str, recipe: str) -> None:
    if schedule == "adafactor" and recipe != "adafactor_auto":
        return  # refused here
    tree = tree_of(f"lr_scheduler={schedule}", f"optimizer={recipe}")
    exporting = export(tree, name="x", total_steps=200)
    given = check_accepted(exporting.script)
    if recipe != "adamw":
        assert "lr_scheduler" not in given
        assert "lr_warmup_steps" not in given  # an error there
        named = any(f"lr_scheduler={schedule}" in line for line in exporting.lost)
        assert named or schedule in ("constant", "adafactor")
        return
    if schedule == "rex":
        assert any("lr_scheduler=rex" in line for line in exporting.lost)
        return
    words = " ".join(
        shlex.quote(f"--{name}={values[0]}") if name != "lr_scheduler_args"
        else f"--{name} {shlex.quote(values[0])}"
        for name, values in given.items()
        if name.startswith("lr_") or name == "learning_rate"
    )  # fmt: skip
    before = config_of(f"lr_scheduler={schedule}").lr_scheduler
    after = imported_config(f"{words} --max_train_steps=200").lr_scheduler
    assert [multiplier(after, step, 200) for step in range(200)] == pytest.approx(
        [multiplier(before, step, 200) for step in range(200)], rel=1e-12
    )


def test_shares_of_an_unknown_length_are_said_and_not_written() -> None:
    unknown = exported("lr_scheduler=piecewise")
    assert "lr_scheduler" not in check_accepted(unknown.script)
    assert any("how many the run has is not known" in line for line in unknown.lost)
    known = export(tree_of("lr_scheduler=piecewise"), name="x", total_steps=120)
    assert "step_rules='1:60,0.1:96,0.01'" in known.script.replace("'\"'\"'", "'")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer=dadaptadam"], ["growth_rate=1e999", "betas=0.9,0.999"]),
        (["network.mid_lr_weight=0"], ["mid_lr_weight=0.0"]),
        (["network.down_lr_weight=0"], [f"down_lr_weight={','.join(['0.0'] * 12)}"]),
        (["network.up_lr_weight=0.123456789"],
         [f"up_lr_weight={','.join(['0.123456789'] * 12)}"]),
        (["network.up_lr_weight=cosine+0.25"], ["up_lr_weight=cosine+0.25"]),
        (["network.mid_lr_weight=cosine"], ["mid_lr_weight=1.0"]),
        ([f"network.conv_block_dims=[{','.join(['4'] * 25)}]", "network.conv_alpha=2"],
         [f"block_dims={','.join(['16'] * 25)}", f"conv_block_alphas={','.join(['2.0'] * 25)}"]),
        (["network.alpha=0.12345678912"], ["--network_alpha=0.12345678912"]),
        (["dataset.resolution=[128,128]", "dataset.bucket_no_upscale=true",
          "dataset.min_bucket_reso=256"], ["--min_bucket_reso=128"]),
        (["lr_scheduler=polynomial"], [f"lr_end={0.001 * 1e-4!r}"]),
        (["train.torch_compile=true"], ["--dynamo_backend=inductor"]),
    ],
)  # fmt: skip
def test_settings_that_were_lost_or_rejected_are_accepted(
    overrides: list[str], words: list[str]
) -> None:
    script = exported("base=sd15", "base.path=/m.safetensors", *overrides).script
    check_accepted(script)
    assert set(words) <= set(shlex.split(script[script.index("accelerate launch") :]))


@given(data=st.data())
def test_any_network_is_accepted(data: st.DataObject) -> None:
    weight = st.sampled_from([0, 0.0, 0.25, 1, 1.5])
    shapes = st.sampled_from(["sine", "cosine+0.25", "linear", "zeros+0.5"])
    family, counts, total = data.draw(
        st.sampled_from([("sd15", (12, 1, 12), 25), ("sdxl", (9, 3, 9), 23)])
    )
    overrides = []
    for side, count in zip(("down", "mid", "up"), counts, strict=True):
        lists = st.lists(weight, min_size=count, max_size=count).map(
            lambda items: f"[{','.join(map(str, items))}]"
        )
        value = data.draw(st.none() | weight | shapes | lists)
        overrides += [] if value is None else [f"network.{side}_lr_weight={value}"]
    for name in ("block_dims", "conv_block_dims"):
        if data.draw(st.booleans()):
            dims = data.draw(st.lists(st.integers(0, 8), min_size=total, max_size=total))
            overrides.append(f"network.{name}=[{','.join(map(str, dims))}]")
    script = exported(f"base={family}", "base.path=/m.safetensors", *overrides).script
    check_accepted(script)


@pytest.mark.parametrize("key", ["color_aug", "random_crop"])
def test_latents_are_not_cached_where_images_change(key: str) -> None:
    assert "cache_latents" in check_accepted(exported().script)
    assert "cache_latents" not in check_accepted(exported(f"dataset.{key}=true").script)


def test_paths_that_are_there_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.safetensors").touch()
    tree = tree_of("base=sd15", "base.path=base.safetensors")
    tree["dataset"]["dir"] = "data"
    given = check_accepted(export(tree, name="x").script)
    assert given["pretrained_model_name_or_path"] == [str(tmp_path / "base.safetensors")]
    assert given["train_data_dir"] == [str(tmp_path / "data")]
    tree["base"]["path"] = "someone/a-model"
    given = check_accepted(export(tree, name="x").script)
    assert given["pretrained_model_name_or_path"] == ["someone/a-model"]


def test_images_that_the_trainer_would_not_find_are_said(tmp_path: Path) -> None:
    tree = tree_of()
    tree["dataset"]["dir"] = str(tmp_path)
    (tmp_path / "metadata.jsonl").touch()
    assert any("takes no image elsewhere" in line for line in export(tree, name="x").lost)
    (tmp_path / "3_girl").mkdir()
    (tmp_path / "3_girl" / "metadata.jsonl").touch()
    lost = export(tree, name="x").lost
    assert any("are not read there" in line for line in lost)
    assert not any("takes no image elsewhere" in line for line in lost)


def test_what_ends_in_an_error_there_is_said() -> None:
    tree = tree_of("seed=9007199254740993", "dataset.bucket_reso_steps=32")
    lost = "\n".join(export(tree, name="x").lost)
    assert "seeds below 2^32" in lost
    assert "multiples of 64" in lost
    assert "ends with an error" in "\n".join(exported("optimizer=muon").lost)


def test_no_option_is_written_that_there_is_not() -> None:
    assert set(arguments(exported().script)) <= set(options())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "my-run")
    write_atomic(run.config_path, OmegaConf.to_yaml(OmegaConf.create(tree_of())))
    assert export_command.main([str(run.path)]) == 0
    script = capsys.readouterr().out
    assert "--output_name=my-run" in script
    write_atomic(
        run.config_path, OmegaConf.to_yaml(OmegaConf.create(tree_of("lr_scheduler=piecewise")))
    )
    write_atomic(run.provenance_path, json.dumps({"total_steps": 120}))
    assert export_command.main([str(run.path)]) == 0
    assert "1:60,0.1:96,0.01" in capsys.readouterr().out  # shares of the run became steps
    assert export_command.main([str(tmp_path / "absent")]) == 2
