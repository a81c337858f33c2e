"""Small copies: made once, again when the picture changes, and never a reason to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from optbench.render import thumbnails
from optbench.render.thumbnails import has_thumbnail, make_thumbnails, thumbnail_path


def picture(run: Path, name: str = "a", size: tuple[int, int] = (512, 768)) -> Path:
    path = run / "images" / "epoch-0001" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 200)).save(path)
    return path


def test_copies_are_small_keep_their_shape_and_are_made_once(tmp_path: Path) -> None:
    tall, wide = picture(tmp_path), picture(tmp_path, "b", (768, 512))

    assert make_thumbnails([tall, wide]) == 2
    assert make_thumbnails([tall, wide]) == 0

    assert thumbnail_path(tall) == tmp_path / "thumbs" / "epoch-0001" / "a.webp"
    with Image.open(thumbnail_path(tall)) as one, Image.open(thumbnail_path(wide)) as other:
        assert (one.format, one.size, other.size) == ("WEBP", (171, 256), (256, 171))
        red, green, blue = one.convert("RGB").getpixel((80, 80))  # type: ignore[misc]
    assert abs(red - 9) + abs(green - 99) + abs(blue - 200) < 12
    assert sorted(path.name for path in thumbnail_path(tall).parent.iterdir()) == [
        "a.webp",
        "b.webp",
    ]


def test_what_links_lead_to_is_not_copied(tmp_path: Path) -> None:
    private = picture(tmp_path / "private", "secret")
    run = tmp_path / "run"
    image = run / "images" / "epoch-0001" / "a.png"
    image.parent.mkdir(parents=True)
    image.symlink_to(private)
    (run / "images" / "epoch-0002").symlink_to(private.parent)
    assert make_thumbnails([image, run / "images" / "epoch-0002" / "secret.png"]) == 0
    assert not (run / "thumbs").exists()


def test_a_picture_made_again_gets_another_copy(tmp_path: Path) -> None:
    path = picture(tmp_path)
    make_thumbnails([path])
    Image.new("RGB", (512, 768), (250, 0, 0)).save(path)
    later = thumbnail_path(path).stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))

    assert make_thumbnails([path]) == 1
    with Image.open(thumbnail_path(path)) as image:
        assert image.convert("RGB").getpixel((5, 5))[0] > 230  # type: ignore[index]


def test_a_damaged_picture_is_tried_once_and_has_no_copy(tmp_path: Path) -> None:
    path = picture(tmp_path)
    path.write_bytes(b"no picture")

    assert make_thumbnails([path]) == 1
    assert make_thumbnails([path]) == 0
    assert not has_thumbnail(path)


def test_an_empty_copy_of_a_power_cut_is_made_again(tmp_path: Path) -> None:
    path = picture(tmp_path)
    make_thumbnails([path])
    thumbnail_path(path).write_bytes(b"")

    assert make_thumbnails([path]) == 1
    assert has_thumbnail(path)


def test_one_file_under_two_names_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "one")
    other = tmp_path / "other" / "images" / "epoch-0001" / "a.png"
    other.parent.mkdir(parents=True)
    os.link(path, other)
    read: list[Path] = []
    make = thumbnails._small_copy
    monkeypatch.setattr(thumbnails, "_small_copy", lambda one: read.append(one) or make(one))

    assert make_thumbnails([path, other]) == 2
    assert len(read) == 1
    assert has_thumbnail(path)
    assert has_thumbnail(other)


def test_nothing_stops_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = picture(tmp_path)
    (tmp_path / "thumbs").write_text("a file in the way")

    assert make_thumbnails([path, tmp_path / "images" / "epoch-0001" / "gone.png"]) == 0
    assert not has_thumbnail(path)
