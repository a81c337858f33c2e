"""The embedded images: a character to train on, and drawings of her that are held out."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from optbench.config.build import register_resolvers
from optbench.storage.resources import asset, conf_dir


def settings_of(option: str) -> Any:
    register_resolvers()
    return OmegaConf.to_container(
        OmegaConf.load(conf_dir() / "validate" / f"{option}.yaml"), resolve=True
    )


def test_held_out_drawings_are_none_of_those_trained_on() -> None:
    pixels = {
        name: [Image.open(path).convert("RGB").tobytes() for path in asset(name).rglob("*.webp")]
        for name in ("mirelle", "mirelle-held-out")
    }
    assert [len(images) for images in pixels.values()] == [24, 8]
    assert len({image for images in pixels.values() for image in images}) == 32


def test_validate_held_out_is_the_default_and_them() -> None:
    expected = settings_of("default") | {"dir": str(asset("mirelle-held-out"))}
    assert settings_of("held_out") == expected
