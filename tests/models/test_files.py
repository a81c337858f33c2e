"""What lies at `base.path` is told from headers and configs, and refused in words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optbench.models.files import facts, locate
from optbench.models.files.detect import what_file_is
from optbench.models.files.families import FAMILIES
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.schema import BaseOptions
from optbench.storage.safetensors_header import read_header

UNET = "model.diffusion_model."
VAE = {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}
TEXT = {
    "sd15": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "sd2": "cond_stage_model.model.ln_final.weight",
    "sdxl": "conditioner.embedders.1.model.ln_final.weight",
}


def whole(family: str, *, channels: int = 4) -> dict[str, tuple[int, ...]]:
    width = FAMILIES[family].context_width
    key = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3),
        key: (640, width),
        TEXT[family]: (1024,),
        **VAE,
    }


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a file of zeros; on most file systems it takes no room."""
    header: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return path


def options(family: str, path: Path | str, **changes: Any) -> BaseOptions:
    made = BaseOptions(
        name=family,
        family=family,
        path=str(path),
        vae=None,
        v_parameterization=False,
        lr_scale=1.0,
        lr_scales={},
    )
    return replace(made, **changes)


def only(family: str, path: Path | str, **changes: Any) -> str:
    """Return the one problem of a base, whole."""
    (problem,) = check_base(options(family, path, **changes))
    assert all((problem.found, problem.expected, problem.where, problem.fix))
    assert problem.where.startswith("base.")
    return str(problem)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_of_its_family_and_of_no_other(family: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", whole(family))
    assert check_base(options(family, path)) == []
    for other in FAMILIES.keys() - {family}:
        told = only(other, path)
        assert f"found {FAMILIES[family].words}" in told
        assert f"base={family}" in told


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)}, "a LoRA"),
        ({"unet.up_blocks.0.attentions.0.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
        (VAE, "an autoencoder (VAE) alone"),
        ({"encoder.conv_in.weight": (128, 3, 3, 3)}, "an autoencoder (VAE) alone"),
        (whole("sd15", channels=9), "for inpainting: a unet that reads 9 channels"),
        (whole("sdxl", channels=9), "for inpainting"),
        (whole("sd15", channels=8), "for editing"),
        ({f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "Flux"),
        ({"control_model.time_embed.0.weight": (1280, 320)}, "a ControlNet"),
        ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "a unet alone"),
        ({"emb_params": (2, 768)}, "a textual inversion"),
        ({"something": (1,)}, "1 tensors of no checkpoint known here, for instance something"),
        ({}, "nothing at all"),
        ({k: v for k, v in whole("sd15").items() if k not in VAE}, "without its autoencoder"),
        (
            {k: v for k, v in whole("sd15").items() if k != TEXT["sd15"]},
            "Stable Diffusion 1.x without its text encoder",
        ),
        (
            {
                **whole("sdxl"),
                "conditioner.embedders.0.model.ln_final.weight": (1280,),
            },
            "the refiner of Stable Diffusion XL",
        ),
    ],
)
def test_what_is_no_base_is_called_by_its_name(
    shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    path = write_header(tmp_path / "m.safetensors", shapes)
    for family in FAMILIES:
        assert words in only(family, path)


def write_configs(folder: Path, **configs: dict[str, Any]) -> Path:
    for name, content in configs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(content))
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("configs", "words", "families"),
    [
        ({"text_encoder": {"hidden_size": 1024}}, "Stable Diffusion 2.x", {"sd15", "sdxl"}),
        ({"text_encoder": {"hidden_size": 768}}, "Stable Diffusion 1.x", {"sd2", "sdxl"}),
        (
            {"unet": {"addition_embed_type": "text_time"}, "text_encoder": {"hidden_size": 768}},
            "Stable Diffusion XL",
            {"sd15", "sd2"},
        ),
        ({"unet": {"in_channels": 9}}, "for inpainting", {"sd15", "sd2", "sdxl"}),
        (
            {"transformer": {"_class_name": "SD3Transformer2DModel"}},
            "Stable Diffusion 3",
            {"sd15", "sd2", "sdxl"},
        ),
        (
            {"transformer": {"_class_name": "FluxTransformer2DModel"}},
            "Flux",
            {"sd15", "sd2", "sdxl"},
        ),
    ],
)
def test_a_folder_of_another_family_is_refused_by_its_configs(
    configs: dict[str, Any], words: str, families: set[str], tmp_path: Path
) -> None:
    folder = write_configs(tmp_path / "model", **configs)
    for family in families:
        assert words in only(family, folder).partition("; expected")[0]


def test_sdxl_without_its_second_text_encoder_is_refused(tmp_path: Path) -> None:
    folder = write_configs(
        tmp_path / "model",
        unet={"addition_embed_type": "text_time"},
        text_encoder={"hidden_size": 768},
    )
    assert "without text_encoder_2, tokenizer_2" in only("sdxl", folder)


def test_a_file_that_is_absent_cut_short_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "where there is none" in only("sd15", tmp_path / "gone.safetensors")
    path = write_header(tmp_path / "m.safetensors", whole("sd15"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "it was cut short" in only("sd15", path)
    for content in (b"", b"abc", b"\xff" * 100, (5).to_bytes(8, "little") + b"[1,2]"):
        path.write_bytes(content)
        assert "safetensors" in only("sd15", path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "ending is none known here" in only("sd15", tmp_path / "m.gguf")


def test_what_a_single_file_of_sd2_predicts_is_asked(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", whole("sd2"))
    assert "base.v_parameterization=true" in only("sd2", path, v_parameterization=None)
    for family in ("sd15", "sdxl"):
        path = write_header(tmp_path / "m.safetensors", whole(family))
        assert check_base(options(family, path, v_parameterization=None)) == []


def test_a_separate_autoencoder_is_one(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", whole("sd15"))
    vae = write_header(tmp_path / "v.safetensors", {"encoder.conv_in.weight": (128, 3, 3, 3)})
    assert check_base(options("sd15", path, vae=str(vae))) == []
    # A whole checkpoint has one inside.
    assert check_base(options("sd15", path, vae=str(path))) == []
    lora = write_header(tmp_path / "l.safetensors", {"lora_te_a.lora_down.weight": (4, 4)})
    assert "a LoRA" in only("sd15", path, vae=str(lora))
    assert "base.vae" in only("sd15", path, vae=str(tmp_path / "gone"))
    assert "base.vae" in only("sd15", path, vae=str(tmp_path))


def test_a_hub_id_is_fetched_once_and_an_unreachable_hub_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[bool] = []

    def snapshot(repo_id: str, *, local_files_only: bool = False, **_: Any) -> str:
        asked.append(local_files_only)
        if local_files_only or repo_id == "some/gone":
            raise LocalEntryNotFoundError("no network")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    locate._fetched.cache_clear()
    assert locate.located("some/model") == locate.located("some/model") == tmp_path
    assert asked == [True, False]
    told = only("sd15", "some/gone")
    assert "hf download some/gone" in told
    assert "no network" in told
    locate._fetched.cache_clear()


def test_a_path_that_is_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate.is_hub_id("models/mine")
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert not locate.is_hub_id("models/mine")
    for path in ("/models/mine", "models/mine/more", "../mine", "mine", "./mine"):
        assert not locate.is_hub_id(path)


def test_clip_skip_is_refused_where_it_has_no_effect_or_no_layer(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", whole("sd2"))
    (problem,) = check_clip_skip(options("sdxl", path), 2)
    assert problem.where == "train.clip_skip"
    assert "last layer but one" in problem.expected
    assert check_clip_skip(options("sd2", path), 2) == []
    for family, layers in (("sd15", 12), ("sd2", 23)):
        assert check_clip_skip(options(family, path), layers) == []
        assert len(check_clip_skip(options(family, path), layers + 1)) == 1


def test_hashes_are_those_of_the_bytes_that_kohya_hashes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8000  # two MB
    path, vae = tmp_path / "my model.safetensors", tmp_path / "vae.pt"
    path.write_bytes(content)
    vae.write_bytes(content[:100])
    found = facts.kohya_hashes(options("sd15", path, vae=str(vae)), cache_dir=tmp_path)
    assert found == {
        "ss_sd_model_name": "my model.safetensors",
        "ss_sd_model_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "ss_new_sd_model_hash": hashlib.sha256(content).hexdigest(),
        "ss_vae_name": "vae.pt",
        "ss_vae_hash": hashlib.sha256(b"").hexdigest()[:8],
        "ss_new_vae_hash": hashlib.sha256(content[:100]).hexdigest(),
    }
    folder = facts.kohya_hashes(options("sd15", tmp_path), cache_dir=tmp_path)
    assert folder == {"ss_sd_model_name": tmp_path.name}
    hub = facts.kohya_hashes(options("sd15", "some/model"), cache_dir=tmp_path)
    assert hub == {"ss_sd_model_name": "some/model"}


def test_a_fingerprint_follows_the_file_and_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    one, two = tmp_path / "a.safetensors", tmp_path / "there" / "b.safetensors"
    for path in (one, two):
        path.write_bytes(b"same")
    first = facts.base_fingerprint(options("sd15", one), cache_dir=tmp_path)
    assert facts.base_fingerprint(options("sd15", two), cache_dir=tmp_path) == first
    two.write_bytes(b"other")
    assert facts.base_fingerprint(options("sd15", two), cache_dir=tmp_path) != first


def test_a_header_is_read_with_its_places(tmp_path: Path) -> None:
    path = write_header(tmp_path / "m.safetensors", {"a": (2, 3), "b": (4,)})
    entries = read_header(path).tensors
    assert entries["b"].start - entries["a"].start == entries["a"].num_bytes == 12
    assert entries["b"].start + entries["b"].num_bytes == path.stat().st_size
    assert what_file_is({}).family is None


def test_the_shipped_bases_compose_to_their_families() -> None:
    from omegaconf import OmegaConf

    from optbench.storage import resources

    for family in FAMILIES:
        file = resources.conf_dir() / "base" / f"{family}.yaml"
        content = OmegaConf.load(file)
        assert content.name == content.family == family
