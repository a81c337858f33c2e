"""A run with regularization pictures, coloured pictures and captions that change at every use."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from optbench.storage import files
from tests.end_to_end.conftest import Command, one_run
from tests.end_to_end.test_one_run import lora_bytes


def test_class_pictures_and_changing_uses_are_trained_the_same_twice(
    command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "reg" / "1_object"
    folder.mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (128, 128), (9, 40 * index, 90)).save(folder / f"{index}.png")
    extra = [
        f"dataset.reg_dir={tmp_path / 'reg'}",
        "dataset.color_aug=true",
        "dataset.caption_tag_dropout_rate=0.5",
        "train.epochs=1",
        "train.batch_size=2",
        "render=off",
    ]
    made = {}
    for name in ("one", "two"):
        printed = command.run(tmp_path / name, extra)
        run = one_run(tmp_path / name)
        made[name] = lora_bytes(run)
        assert len(files.read_rows(run / "steps.jsonl")) == 4  # 4 pictures and 4 of 6, by twos
        provenance = json.loads((run / "provenance.json").read_text())
        assert provenance["dataset"]["num_samples_per_epoch"] == 8
        words = printed.stdout + printed.stderr
        assert "2 of 6 regularization images are not used" in words
        assert "encoded anew at every use" in words
    assert made["one"] == made["two"]
    assert "-reg-" in one_run(tmp_path / "one").name
