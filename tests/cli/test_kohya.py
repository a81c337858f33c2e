"""To kohya's command line and back: nothing is lost that is not said."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict

from optbench.analysis import settings
from optbench.cli.kohya import export_command, import_command, option_names
from optbench.cli.kohya.export_script import Exported, export
from optbench.cli.kohya.import_script import convert, read_options
from optbench.config.build import build_config, config_tree
from optbench.config.compose import compose_tree
from optbench.config.composer import hydra_session
from optbench.errors import ConfigError, Problem
from optbench.storage.files import write_atomic
from optbench.storage.resources import program
from optbench.storage.rundir import RunDir

SAME = ("dataset", "network", "lr_scheduler", "train", "loss", "seed")
OURS_ALONE = ("device", "num_threads", "name")


def tree_of(*overrides: str) -> dict[str, Any]:
    """Return the config of some overrides as a run's config.yaml holds it."""
    problems: list[Problem] = []
    with hydra_session(None, "config") as hydra:
        tree, kept = compose_tree(hydra, list(overrides), problems=problems)
    assert not problems, problems
    assert len(kept) == len(overrides)
    with open_dict(tree):
        del tree["hydra"]
    return config_tree(build_config(tree))


def exported(*overrides: str) -> Exported:
    return export(tree_of(*overrides), name="my-run")


def imported_tree(script: str, tmp_path: Path, suffix: str = ".sh") -> dict[str, Any]:
    file = tmp_path / f"train{suffix}"
    file.write_text(script)
    overrides = convert(read_options(file)).overrides
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
            ["conv_dim=8", "conv_alpha=1.0", "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1"],
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
        (["lr_scheduler=piecewise"], ["--lr_scheduler=piecewise_constant"]),
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


def test_every_setting_has_an_equivalent_or_a_reason_for_none() -> None:
    tree = tree_of()
    known = {
        *option_names.VALUES.values(),
        *option_names.FLAGS.values(),
        *option_names.LOSS_VALUES.values(),
        *option_names.LOSS_FLAGS.values(),
        *option_names.DROPOUTS.values(),
        *option_names.NETWORK_ARGS.values(),
        *option_names.SPECIAL,
        *option_names.WITHOUT_EQUIVALENT,
    }
    groups = {key for key, value in tree.items() if isinstance(value, dict) and "name" in value}
    listed = settings(tree).keys() | {"optimizer.note", "optimizer.package", "optimizer.paper"}
    inner = ("optimizer.args.", "optimizer.traits.", "optimizer.refused_args.", "prompts.prompts")
    missing = {key for key in listed - known - groups if not key.startswith(inner)}
    assert not missing, "give each a line in optbench/kohya/names.py"


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
    assert "1e-07" in "\n".join(exported("lr_scheduler=polynomial").lost)
    assert "network.dora=true" in "\n".join(exported("network.dora=true").lost)
    assert "group_args" in "\n".join(exported("optimizer=muon").lost)


WINDOWS = r"""
@echo off
accelerate launch --num_cpu_threads_per_process=2 "train_network.py" ^
  --pretrained_model_name_or_path="C:\models\anime full.safetensors" ^
  --train_data_dir="D:\my pictures" --resolution=512,768 --enable_bucket ^
  --learning_rate 1e-4 --unet_lr 1e-4 --text_encoder_lr 0 ^
  --network_module=networks.lora --network_dim=32 --network_alpha=16 ^
  --network_args "conv_dim=8" "algo=lora" ^
  --optimizer_type=Lion --optimizer_args weight_decay=0.01 "betas=0.9,0.95" ^
  --lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 3 --lr_warmup_steps=10%% ^
  --max_train_epochs=10 --min_timestep=100 --xformers
""".replace("%%", "%")


def test_a_windows_command_is_read(tmp_path: Path) -> None:
    file = tmp_path / "train.bat"
    file.write_text(WINDOWS)
    imported = convert(read_options(file))
    assert r"base.path=C:\models\anime full.safetensors" in imported.overrides
    assert {
        "dataset.resolution=[512,768]",
        "network.train_text_encoder=false",
        "network.conv_alpha=1.0",
        "optimizer=lion",
        "optimizer.args.betas=[0.9,0.95]",
        "lr_scheduler.warmup_steps=0.1",
        "train.epochs=10",
        "train.batch_size=1",
    } <= set(imported.overrides)
    assert any(one.startswith("network_args algo=lora") for one in imported.lost)
    assert any(one.startswith("xformers") for one in imported.not_needed)
    assert "max_grad_norm=1.0" in imported.assumed
    assert not any(one.startswith("max_train_steps") for one in imported.assumed)


def test_what_a_command_leaves_out_is_the_class_default_and_not_the_recipes(tmp_path: Path) -> None:
    file = tmp_path / "train.sh"
    file.write_text("python train_network.py --optimizer_type lion --learning_rate=1e-5")
    overrides = convert(read_options(file)).overrides
    assert "~optimizer.args.weight_decay" in overrides
    tree = tree_of(*overrides, "base=tiny", "dataset=mirelle", "prompts=mirelle")
    assert tree["optimizer"]["args"] == {}
    assert tree["optimizer"]["text_encoder_lr"] is None


def test_a_continued_training_is_one_here_too() -> None:
    asked = {"network_weights": "old.safetensors", "dim_from_weights": True, "network_dim": "8"}
    overrides = convert(asked).overrides
    assert {"network.weights=old.safetensors", "network.dim_from_weights=true"} <= set(overrides)
    assert not [one for one in overrides if one.startswith(("network.dim=", "network.alpha="))]
    fixed = convert({"network_weights": "old.safetensors", "network_dim": "8"})
    assert {"network.dim=8", "network.alpha=1.0"} <= set(fixed.overrides)


@pytest.mark.parametrize(
    ("asked", "recipe"),
    [
        ("DAdaptation", "dadaptadampreprint"),
        ("came_pytorch.CAME", "came"),
        ("prodigyplus.ProdigyPlusScheduleFree", "prodigyplus"),
        ("Adafactor", "adafactor_auto"),
    ],
)
def test_kohyas_names_of_classes(asked: str, recipe: str) -> None:
    assert f"optimizer={recipe}" in convert({"optimizer_type": asked}).overrides


def test_what_we_have_not_is_said() -> None:
    lost = convert(
        {
            "optimizer_type": "NAdam",
            "lr_scheduler": "reduce_lr_on_plateau",
            "weighted_captions": True,
        }
    ).lost
    assert any("NAdam" in one for one in lost)
    assert any("reduce_lr_on_plateau" in one for one in lost)
    assert "weighted_captions=True" in lost


def test_loss_settings_that_do_nothing_there_are_left_out(tmp_path: Path) -> None:
    """As programs that write such files do: every option, whether it has an effect or not."""
    file = tmp_path / "gui.toml"
    file.write_text(
        'loss_type = "l2"\nhuber_c = 0.1\nhuber_schedule = "snr"\nhuber_scale = 1\n'
        "min_snr_gamma = 0\nnoise_offset = 0\nadaptive_noise_scale = 0.1\n"
        "noise_offset_random_strength = true\nmultires_noise_iterations = 0\n"
        "multires_noise_discount = 0.3\nip_noise_gamma = 0.1\nzero_terminal_snr = false\n"
        "max_timestep = 1000\nprior_loss_weight = 1\n"
    )
    imported = convert(read_options(file))
    assert {one for one in imported.overrides if one.startswith("loss.")} == {
        "loss.loss_type=l2",
        "loss.ip_noise_gamma=0.1",
        "loss.max_timestep=1000",
    }
    said = {one.partition(":")[0] for one in imported.not_needed}
    assert {"huber_c", "huber_scale", "min_snr_gamma", "multires_noise_discount"} <= said
    assert "prior_loss_weight" in said
    weighed = {"reg_data_dir": "/data/girls", "prior_loss_weight": 0.5}
    assert "loss.prior_loss_weight=0.5" in convert(weighed).overrides
    assert not any("huber" in one or "noise" in one for one in imported.lost)
    tree = tree_of(*imported.overrides, "base=tiny", "dataset=mirelle", "prompts=mirelle")
    assert tree["loss"]["ip_noise_gamma"] == 0.1


def test_hostile_paths_reach_the_config_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "my, 'own' [pictures] ${seed}"
    file = tmp_path / "train.sh"
    file.write_text(f"train_network.py --vae={shlex.quote(str(folder))}")
    overrides = convert(read_options(file)).overrides
    problems: list[Problem] = []
    with hydra_session(None, "config") as hydra:
        tree, _ = compose_tree(hydra, overrides, problems=problems)
    assert not problems
    assert OmegaConf.select(tree, "base.vae") == str(folder)


def test_toml_with_tables(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'seed = 7\n[network]\nnetwork_dim = 8\n[optimizer]\noptimizer_type = "AdamW8bit"\n'
        'optimizer_args = ["weight_decay=0.1"]\n'
    )
    overrides = convert(read_options(file)).overrides
    assert {"seed=7", "network.dim=8", "optimizer.args.weight_decay=0.1"} <= set(overrides)


@pytest.mark.parametrize("content", ["", "hello", "a = [", "seed ="])
@pytest.mark.parametrize("suffix", [".sh", ".toml"])
def test_a_file_without_options_is_refused(tmp_path: Path, content: str, suffix: str) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_text(content)
    with pytest.raises(ConfigError, match="train_network"):
        read_options(file)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "my-run")
    write_atomic(run.config_path, OmegaConf.to_yaml(OmegaConf.create(tree_of())))
    assert export_command.main([str(run.path)]) == 0
    script = capsys.readouterr().out
    assert "--output_name=my-run" in script
    (tmp_path / "train.sh").write_text(script)
    assert import_command.main([str(tmp_path / "train.sh")]) == 0
    assert capsys.readouterr().out.startswith(f"{program()} base=sd15 ")
    assert import_command.main([str(tmp_path / "absent.sh")]) == 2
    assert "absent.sh" in capsys.readouterr().err
    assert export_command.main([str(tmp_path / "absent")]) == 2
    assert import_command.main([]) == 2
    assert f"write {program()} import FILE" in capsys.readouterr().err


def test_the_table_for_people_has_every_option_of_loss_and_memory() -> None:
    table = (Path(__file__).resolve().parents[2] / "docs" / "kohya-names.md").read_text()
    pairs = {**option_names.LOSS_VALUES, **option_names.LOSS_FLAGS}
    shared = {**option_names.VALUES, **option_names.FLAGS}
    pairs |= {kohya: ours for kohya, ours in shared.items() if ours.startswith("train.")}
    for kohya, ours in pairs.items():
        assert f"| `--{kohya}` | `{ours}` |" in table
