"""What a command would run and cost, told without running it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from optbench.cli import plan as plan_command
from optbench.config.build import config_yaml
from optbench.config.compose import compose_runs
from optbench.launch import estimate, guard
from optbench.storage import files, rundir
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)


def only(*arguments: str) -> RunPlan:
    (run,) = compose_runs(arguments).runs
    return run


def cost_of(*arguments: str) -> estimate.Cost:
    return estimate.estimate(only("validate=off", *arguments))


def write_run(run: RunPlan, *, step_seconds: float, pause_seconds: float) -> None:
    files.write_atomic(run.run_dir / "config.yaml", config_yaml(run.config))
    row = {"epoch": 1, "seconds_forward": step_seconds, "seconds_backward": 0.0}
    rows = [{"step": step, **row} for step in range(1, run.total_steps + 1)]
    files.append_rows(run.run_dir / "steps.jsonl", rows)
    pause = {"epoch": 1, "seconds_train": 99.0, "seconds_render": pause_seconds}
    files.append_rows(run.run_dir / "epochs.jsonl", [pause])
    if run.config.validate.enabled:
        files.write_atomic(run.run_dir / "validation.jsonl", b"")
    for path in guard.image_paths(rundir.RunDir(run.run_dir), run.config):
        files.write_atomic(path, b"")
    rundir.write_status(run.run_dir, "done", made_as=made_as(run))


def write_base(folder: Path, part: str, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps({"__metadata__": {}, **header}).encode()
    file = folder / "tiny" / part / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(stop))


def test_the_plan_of_the_main_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-m", "optimizer=adamw,lion,dadaptlion", "network.dim=16,32,64,128"]
    assert plan_command.main(command) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"(adamw|lion|dadaptlion)-dim\d+-[0-9a-f]{8}\s+to do", out)) == 12
    assert "12 runs: 0 done, 12 to do" in out
    assert "bucket 512x768: 2 images, 6 uses" in out
    assert "bucket 768x512: 1 images, 3 uses" in out
    assert "optimizer.lr is a factor" in out
    assert "time: unknown" in out
    assert "class words" not in out
    assert list(Path().iterdir()) == []


def test_pictures_without_captions_are_named(
    fake_assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caption = sorted((fake_assets / "mirelle").rglob("*.txt"))[0]
    caption.unlink()
    assert plan_command.main([]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 images have no caption but their folder's class words" in out
    assert caption.stem in out


def test_problems_are_all_told_and_the_exit_code_is_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan_command.main(["network.dim=0", "seed=-1"]) == 2
    out = capsys.readouterr().err
    assert "network.dim" in out
    assert "seed" in out


def test_finished_runs_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(only("network.dim=8"), step_seconds=1, pause_seconds=1)
    plan_command.main(["network.dim=8"])
    assert "1 run: 1 done, 0 to do" in capsys.readouterr().out
    plan_command.main(["network.dim=8", "render.steps=3"])
    assert "other images to render" in capsys.readouterr().out


def test_steps_are_counted_by_bucket_and_update() -> None:
    # 6 and 3 uses: 3 + 2 batches of 2.
    assert cost_of().num_steps_per_epoch == 5
    assert cost_of("train.epochs=8").num_steps == 40
    assert cost_of("train.gradient_accumulation=2").num_steps_per_epoch == 3
    assert cost_of("train.batch_size=4").num_steps_per_epoch == 3
    short = cost_of("train.max_steps=12")
    assert (short.num_steps, short.num_epochs) == (12, 3)


def test_time_is_judged_by_the_nearest_earlier_run() -> None:
    assert cost_of().seconds is None
    write_run(only("optimizer=lion"), step_seconds=1.0, pause_seconds=10.0)
    assert cost_of("train.epochs=8").seconds == pytest.approx(40 * 1.0 + 8 * 10.0)
    write_run(only("network.dim=8"), step_seconds=2.0, pause_seconds=20.0)
    assert cost_of("train.epochs=8").seconds == pytest.approx(40 * 2.0 + 8 * 20.0)
    assert cost_of("train.batch_size=1").seconds is None


def write_small_base(assets: Path) -> None:
    unet = "down_blocks.0.attentions.0.proj_in.weight", "down_blocks.0.resnets.0.conv1.weight"
    shapes = {unet[0]: [10, 20], unet[1]: [4, 6, 3, 3], "time_embedding.linear_1.weight": [9, 9]}
    write_base(assets, "unet", shapes)
    write_base(assets, "text_encoder", {"text_model.encoder.layers.0.mlp.fc1.weight": [7, 7]})


def test_disk_is_judged_by_the_layers_of_the_base(fake_assets: Path) -> None:
    write_small_base(fake_assets)
    # Each layer has two weights and an alpha.
    assert estimate.num_lora_numbers(only("network.dim=2")) == 2 * 30 + 1 + 2 * 14 + 1
    only_unet = only("network.dim=2", "network.train_text_encoder=false")
    assert estimate.num_lora_numbers(only_unet) == 2 * 30 + 1
    locon = only("network=locon", "network.dim=2", "network.conv_dim=3")
    convs = 3 * (6 * 9 + 4) + 1
    assert estimate.num_lora_numbers(locon) == 2 * 30 + 1 + 2 * 14 + 1 + convs
    assert cost_of("render=off").disk_bytes < cost_of().disk_bytes


def test_equal_dims_by_block_and_for_all_take_equal_room(fake_assets: Path) -> None:
    write_small_base(fake_assets)
    unet = "network.train_text_encoder=false"
    by_block = f"network.block_dims=[{','.join(['64'] * 25)}]"
    for_all = cost_of("network.dim=64", unet).disk_bytes
    assert cost_of("network.dim=4", by_block, unet).disk_bytes == for_all
    assert cost_of("network.dim=4", unet).disk_bytes < for_all
    without = cost_of("network.dim=64", unet, "network=locon", "network.down_lr_weight=0.0")
    assert without.disk_bytes < for_all


def test_the_data_is_counted_by_folder_bucket_and_batch(
    fake_assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = fake_assets / "mirelle" / "3_girl"
    for index in range(4):
        folder = fake_assets / "reg" / "2_girl"
        folder.mkdir(parents=True, exist_ok=True)
        content = (pictures / "0.png").read_bytes()
        (folder / f"{index}.png").write_bytes(content + bytes(index))  # still the same picture
    reg = f"dataset.reg_dir={fake_assets / 'reg'}"
    assert (
        plan_command.main(["-m", reg, "train.batch_size=2,4", "train.gradient_accumulation=3"]) == 0
    )
    out = capsys.readouterr().out
    assert "data set mirelle: 7 images, 18 uses an epoch" in out
    assert "folder 3_girl: 3 images x 3 = 9 uses" in out
    assert "regularization folder 2_girl: 4 class images x 2, then balanced" in out
    reg_part = "(4 and 9 of them regularization)"
    assert f"bucket 512x768: 6 images, 15 uses an epoch {reg_part}, 8 or 4 batches" in out
    assert "bucket 768x512: 1 images, 3 uses an epoch, 2 or 1 batches" in out
    assert "steps an epoch: 4 (10 batches of up to 2, 3 to a step)" in out
    assert "steps an epoch: 2 (5 batches of up to 4, 3 to a step)" in out


def test_validation_takes_time_also_where_no_earlier_run_had_any() -> None:
    write_run(only("network.dim=8", "validate=off"), step_seconds=2.0, pause_seconds=20.0)
    plain = cost_of("train.epochs=8").seconds
    assert plain is not None
    asked = estimate.estimate(only("train.epochs=8", "validate.every_n_epochs=3"))
    # Three images of four kinds, five timesteps, a pass forward of 2 s for a batch of 2; epochs 3,
    # 6 and 8.
    assert asked.seconds == pytest.approx(plain + 3 * (4 * 3 * 5 * 2.0 / 2))


def test_validation_takes_as_long_as_in_the_nearest_earlier_run() -> None:
    run = only("network.dim=8")
    write_run(run, step_seconds=2.0, pause_seconds=20.0)
    row = {"epoch": 2, "seconds_validate": 7.0, "seconds_render": 20.0}
    files.append_rows(run.run_dir / "epochs.jsonl", [row])
    (run.run_dir / "validation.jsonl").write_text("")
    plain = cost_of("train.epochs=8").seconds
    assert plain is not None
    assert estimate.estimate(only("train.epochs=8")).seconds == pytest.approx(plain + 7.0)


def test_only_what_a_run_does_between_its_epochs_takes_time() -> None:
    write_run(only("network.dim=8"), step_seconds=2.0, pause_seconds=20.0)
    assert cost_of("train.epochs=8", "render=off").seconds == pytest.approx(40 * 2.0)


def test_the_plan_says_how_many_runs_go_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_run(only("network.dim=8"), step_seconds=1.0, pause_seconds=0.0)
    command = ["-m", "network.dim=1,2,3,4,5", "train.epochs=20", "validate=off"]
    assert plan_command.main(command) == 0
    out = capsys.readouterr().out
    assert "workers: one run after the other in one process" in out
    assert "time: 8 min 20 s" in out
    assert "time with them" not in out
    assert plan_command.main([*command, "launch.workers=4"]) == 0
    out = capsys.readouterr().out
    assert "workers: 4 at a time, each run in a process of its own" in out
    assert "time with them: about 2 min 05 s" in out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("optbench.config.identity.device_kind", lambda name: "cuda")
    assert plan_command.main(command) == 0
    out = capsys.readouterr().out
    assert "workers: 2 at a time, each run in a process of its own, on 2 GPUs" in out


def test_what_is_unwise_is_a_note_and_no_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_command.main(["optimizer=adafactor_auto", "lr_scheduler=cosine_with_restarts"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "adafactor_auto: lr_scheduler=cosine_with_restarts changes nothing" in text
    assert "adafactor_auto: gradients are clipped to a norm of 1" in text
    assert plan_command.main(["optimizer=adamwschedulefree", "lr_scheduler=cosine"]) == 0
    assert "lr_scheduler=cosine lowers the rate" in " ".join(capsys.readouterr().out.split())


def test_dims_at_one_rate_are_said_to_move_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_command.main(["-m", "network.dim=16,64"]) == 0
    assert "network.alpha=8 and network.rslora=true network.alpha=2" in "".join(
        capsys.readouterr().out.split("\n")
    )
    assert plan_command.main(["-m", "network.dim=16,64", "network.alpha=8"]) == 0
    assert "move together" not in capsys.readouterr().out
