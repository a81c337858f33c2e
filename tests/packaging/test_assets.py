"""The embedded images: a character to train on, and drawings of her that are held out."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from optbench.config.build import register_resolvers
from optbench.storage.resources import asset, conf_dir

SETS = ("held_out", "ood", "others")


def default_validation(dataset_dir: str) -> Any:
    register_resolvers()
    options = OmegaConf.load(conf_dir() / "validate" / "default.yaml")
    tree = OmegaConf.create({"dataset": {"dir": dataset_dir}, "validate": options})
    return OmegaConf.to_container(tree, resolve=True)["validate"]  # type: ignore[call-overload,index]


def captions(name: str) -> list[str]:
    return [path.read_text() for path in sorted((asset("validation") / name).rglob("*.txt"))]


def test_no_drawing_to_validate_on_is_trained_on_or_there_twice() -> None:
    folders = [asset("mirelle"), *(asset("validation") / name for name in SETS)]
    pixels = [
        [Image.open(path).convert("RGB").tobytes() for path in folder.rglob("*.webp")]
        for folder in folders
    ]
    assert [len(images) for images in pixels] == [24] * 4
    assert len({image for images in pixels for image in images}) == 96


def test_the_sets_show_her_as_trained_her_otherwise_and_others() -> None:
    hers = ("starry dress", "gem armor")
    assert all(text.startswith("mirelle,") for text in captions("held_out") + captions("ood"))
    assert all(any(outfit in text for outfit in hers) for text in captions("held_out"))
    assert not any(outfit in text for text in captions("ood") for outfit in hers)
    assert sum("beach" in text for text in captions("ood")) == 12
    assert not any("mirelle" in text for text in captions("others"))


def test_they_are_the_default_of_her_data_set_alone() -> None:
    keys = ("dir", "ood_dir", "others_dir")
    hers, of_a_user = default_validation(str(asset("mirelle"))), default_validation("/my/images")
    assert [hers[key] for key in keys] == [str(asset("validation") / name) for name in SETS]
    assert [of_a_user[key] for key in keys] == [None] * 3


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in asset("validation").rglob("*.*")) < 2_000_000
