"""The reader of outfits and backgrounds: what it learns is what optbench.metrics reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from optbench.metrics import Picture, embedded
from optbench.metrics.embedded import EmbeddedEncoder, read_states
from optbench.storage import resources
from tools.tinybase import reader as training


def test_reading_is_what_the_reader_computes() -> None:
    torch.manual_seed(0)
    reader = training.Reader({"outfit": ["a", "b"], "background": ["c", "d", "e"]}, 5, 6)
    torch.nn.init.normal_(reader.place)
    states = torch.randn(5, 6)
    named = {
        "mean": torch.zeros(6),
        "spread": torch.ones(6),
        "query": reader.query,
        "place": reader.place,
        "value": reader.value.weight,
        "value_bias": reader.value.bias,
        "hidden": reader.hidden.weight,
        "hidden_bias": reader.hidden.bias,
        "out": reader.out.weight,
        "out_bias": reader.out.bias,
        "values": reader.values,
    }
    with torch.inference_mode():
        found = read_states(named, states)
        logits = reader(states[None])
    for (name, values), one in zip(reader.values.items(), logits, strict=True):
        probabilities = one[0].softmax(0).tolist()
        assert [found[name][value] for value in values] == pytest.approx(probabilities, abs=1e-5)


def test_a_reader_learns_what_thumbnails_show_and_leaves_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colors = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}
    draw = torch.Generator().manual_seed(0)
    thumbnails, truths = [], []
    for index in range(60):
        name = list(colors)[index % 3]
        noise = torch.randint(0, 30, (128, 128, 3), generator=draw)
        thumbnails.append((torch.tensor(colors[name]) + noise).to(torch.uint8))
        truths.append(dict.fromkeys(training.ATTRIBUTES, name))
    learned = (torch.stack(thumbnails), truths)
    monkeypatch.setattr(training, "_learned_from", lambda drawings, base, seed: learned)
    target = tmp_path / "reader.json"
    found = training.make_reader(
        tmp_path, resources.asset("tiny"), target, {}, seed=0, num_steps=30
    )
    assert found == dict.fromkeys(training.ATTRIBUTES, 1.0)
    monkeypatch.setattr(embedded, "_reader_file", lambda: target)
    picture = tmp_path / "green.png"
    Image.new("RGB", (64, 64), (45, 175, 75)).save(picture)
    metric = EmbeddedEncoder(str(resources.asset("tiny")), "cpu")
    shown = metric.measure(Picture(path=picture, text="green, red dress"), [])
    assert shown["outfit_obedience"].value > 0.8
