"""Metrics with a model of one's own: exact architectures with random weights, made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)

from optbench.errors import BaseError, ConfigError
from optbench.metrics import Picture
from optbench.metrics.clip import Clip
from optbench.metrics.dino import Dino
from optbench.metrics.lpips import Lpips
from optbench.metrics.measure import Tally, measure_run
from optbench.metrics.vision import prepared
from optbench.storage import files, resources, rundir
from tests.builders.image_runs import make_run, save, smooth

SIDE = 32
HOW = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(resources.asset("tiny") / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text = CLIPTextConfig(
        **small,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**small, num_attention_heads=2, image_size=SIDE, patch_size=8)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HOW))
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    how = {**HOW, "image_processor_type": "ViTImageProcessor", "do_center_crop": False}
    how["size"] = {"height": SIDE, "width": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(how))
    return folder


def pictures(folder: Path, number: int) -> list[Picture]:
    return [
        Picture(path=save(folder / f"{index}.png", smooth(index)), text="1girl, beach")
        for index in range(number)
    ]


def test_pictures_are_prepared_as_clip_prepares_them(tmp_path: Path) -> None:
    own = pictures(tmp_path, 1)[0].path
    processor = CLIPImageProcessorPil(**{k: v for k, v in HOW.items() if "type" not in k})
    from PIL import Image

    theirs = torch.as_tensor(np.asarray(processor(Image.open(own))["pixel_values"][0]))
    torch.testing.assert_close(prepared(own, HOW)[0], theirs, rtol=0, atol=1e-5)


def test_clip_is_the_cosine_that_the_model_itself_gives(clip_folder: Path, tmp_path: Path) -> None:
    own, *others = pictures(tmp_path, 3)
    found = Clip(str(clip_folder), "cpu").measure(own, others)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = CLIPTokenizer.from_pretrained(clip_folder)([own.text], return_tensors="pt")
    with torch.inference_mode():
        pixels = torch.cat([prepared(one.path, HOW) for one in (own, *others)])
        output = model(pixel_values=pixels, **ids)
    images = F.normalize(output.image_embeds, dim=-1)
    text = F.normalize(output.text_embeds, dim=-1)[0]
    assert found["clip_text"].value == pytest.approx(float(images[0] @ text), abs=1e-5)
    cosines = images[1:] @ images[0]
    assert found["clip_image"].value == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert found["clip_nearest"].value == pytest.approx(float(cosines.max()), abs=1e-5)
    assert found["clip_nearest"].detail == f"{int(cosines.argmax()) + 1}.png"


def test_a_copy_is_its_own_nearest_picture(dino_folder: Path, tmp_path: Path) -> None:
    own, *others = pictures(tmp_path, 4)
    copy = Picture(path=save(tmp_path / "copy.png", smooth(0)), text="")
    found = Dino(str(dino_folder), "cpu").measure(own, [*others, copy])
    assert found["dino_nearest"].value == pytest.approx(1, abs=1e-5)
    assert found["dino_nearest"].detail == "copy.png"
    model = ViTModel.from_pretrained(dino_folder).eval()
    how = {**HOW, "do_center_crop": False, "size": {"height": SIDE, "width": SIDE}}
    with torch.inference_mode():
        pixels = torch.cat([prepared(one.path, how) for one in (own, *others, copy)])
        tokens = F.normalize(model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)
    cosines = tokens[1:] @ tokens[0]
    assert found["dino_image"].value == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_a_run_gets_floor_and_ceiling(clip_folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, base="sd15")
    tally = Tally()
    measure_run(run, {"clip": Clip(str(clip_folder), "cpu")}, tally)
    assert tally.notices == []
    rows = files.read_rows(run.path / rundir.METRICS_NAME)
    assert {row["metric"] for row in rows} == {"clip_text", "clip_image", "clip_nearest"}
    assert all(row["base_value"] is not None for row in rows)
    assert all(-1 <= row["training_value"] <= 1 for row in rows)


@pytest.mark.parametrize("kind", [Clip, Dino])
def test_a_place_without_a_model_is_refused_before_anything_is_loaded(
    kind: type[Clip] | type[Dino], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"without a config\.json"):
        kind(str(tmp_path), "cpu")
    with pytest.raises(ConfigError, match="where no folder is"):
        kind(str(tmp_path / "nothing"), "cpu")
    with pytest.raises(ConfigError, match="device=auto"):
        kind("openai/clip-vit-base-patch32", "gpu")
    assert kind("openai/clip-vit-base-patch32", "auto").settings["path"]


def test_a_model_without_its_preparation_says_what_is_missing(
    clip_folder: Path, tmp_path: Path
) -> None:
    for file in clip_folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (own,) = pictures(tmp_path / "pictures", 1)
    with pytest.raises(BaseError, match="preprocessor_config"):
        Clip(str(tmp_path), "cpu").measure(own, [])


WIDTHS = (64, 192, 384, 256, 256)
SHAPES = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    draw = torch.Generator().manual_seed(3)
    network = {}
    for place, shape in SHAPES.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5
        network[f"features.{place}.weight"] = torch.randn(shape, generator=draw) * spread
        network[f"features.{place}.bias"] = torch.randn(shape[0], generator=draw) * 0.1
    weights = {
        f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1, generator=draw)
        for index, width in enumerate(WIDTHS)
    }
    save_file(network, folder / "alexnet.safetensors")
    torch.save(weights, folder / "alex.pth")
    return folder / "alexnet.safetensors", folder / "alex.pth"


def test_lpips_of_equal_pictures_is_zero_and_grows_with_the_difference(
    lpips_files: tuple[Path, Path], tmp_path: Path
) -> None:
    metric = Lpips(str(lpips_files[0]), str(lpips_files[1]), "cpu")
    own = Picture(path=save(tmp_path / "a.png", smooth(1)), text="")
    assert metric.measure(own, [own])["lpips_from_base"].value == 0
    assert metric.measure(own, []) == {}
    distances = []
    for share in (0.1, 0.4, 1.0):
        mixed = (smooth(1) * (1 - share) + smooth(2) * share).astype(np.uint8)
        other = Picture(path=save(tmp_path / f"{share}.png", mixed), text="")
        distances.append(metric.measure(own, [other])["lpips_from_base"].value)
    assert 0 < distances[0] < distances[1] < distances[2]


def test_lpips_of_one_layer_is_the_formula(lpips_files: tuple[Path, Path]) -> None:
    """Every layer but the first weighs nothing; then it can be followed by hand."""
    network, _ = lpips_files
    weights = {
        f"lin{index}.model.1.weight": torch.full((1, width, 1, 1), float(index == 0))
        for index, width in enumerate(WIDTHS)
    }
    file = network.parent / "first.pth"
    torch.save(weights, file)
    draw = torch.Generator().manual_seed(5)
    one, other = torch.rand(2, 1, 3, 64, 64, generator=draw) * 2 - 1
    found = Lpips(str(network), str(file), "cpu").distance(one, other)
    from safetensors.torch import load_file

    tensors = load_file(network)
    kernel, bias = tensors["features.0.weight"], tensors["features.0.bias"]
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)

    def unit(pixels: torch.Tensor) -> torch.Tensor:
        raw = F.conv2d((pixels - shift) / scale, kernel, bias, stride=4, padding=2)
        return F.normalize(raw.relu(), dim=1)

    expected = (unit(one) - unit(other)).square().sum(1).mean()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_lpips_refuses_missing_and_foreign_files(
    lpips_files: tuple[Path, Path], tmp_path: Path
) -> None:
    network, weights = (str(path) for path in lpips_files)
    with pytest.raises(ConfigError, match="alexnet-owt"):
        Lpips(str(tmp_path / "no.pth"), weights, "cpu")
    (tmp_path / "x.pth").write_bytes(b"no pickle")
    own = Picture(path=save(tmp_path / "a.png", smooth(1)), text="")
    for swapped in ((weights, weights), (network, network), (network, str(tmp_path / "x.pth"))):
        with pytest.raises(BaseError, match="in this order"):
            Lpips(*swapped, "cpu").measure(own, [own])
