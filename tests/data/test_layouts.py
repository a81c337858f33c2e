"""Folders with a metadata.jsonl, and folders that hold the pictures themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from optbench.config.build import check_value, config_tree
from optbench.data import read_dataset
from optbench.errors import DatasetError, Problem
from optbench.records import Dataset
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN

ROW = {"file_name": "a.png", "text": "x, a"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two loose pictures and one in a folder of its own."""
    (tmp_path / "more").mkdir()
    for index, name in enumerate(["a.png", "b.png", "more/c.png"]):
        Image.new("RGB", (128, 64), (index, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(root: Path, *rows: Any) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def read(root: Path, **changes: Any) -> Dataset:
    return read_dataset(replace(PLAIN, dir=str(root), **changes), pixels_per_latent=8)


def problems(root: Path, **changes: Any) -> tuple[Problem, ...]:
    with pytest.raises(DatasetError) as caught:
        read(root, **changes)
    return caught.value.problems


def test_lines_name_pictures_captions_and_repeats(root: Path) -> None:
    more = {"file_name": "more/c.png", "text": "x, \u00e9\nsecond", "num_repeats": 3}
    write(root, more, "", {"file_name": "b.png", "text": "x, b"}, ROW)
    dataset = read(root)
    assert [(i.path.name, i.caption, i.repeats) for i in dataset.images] == [
        ("a.png", "x, a", 1),
        ("b.png", "x, b", 1),
        ("c.png", "x, \u00e9", 3),
    ]
    (sentence,) = dataset.notices
    assert "several lines" in sentence
    assert [image.repeats for image in read(root, num_repeats=5).images] == [3, 5, 5]
    assert read(root, enable_wildcard=True).images[2].caption == "x, \u00e9\nsecond"
    assert [one.repeats for one in read(root).folders] == [1, 3]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("no json", "no JSON"),
        ("[1]", "[1]"),
        ({"text": "x"}, "the keys text"),
        ({"file_name": "b.png", "caption": "x"}, "the keys file_name, caption"),
        ({"file_name": "b.png", "text": " "}, "text ' '"),
        ({"file_name": "b.png", "text": "x", "num_repeats": 0}, "num_repeats 0"),
        ({"file_name": "b.png", "text": "x", "num_repeats": "2"}, "num_repeats '2'"),
        ({"file_name": "gone.png", "text": "x"}, "'gone.png'"),
        ({"file_name": "../a.png", "text": "x"}, "'../a.png'"),
        ({"file_name": "more/../b.png", "text": "x"}, "more/../b.png"),
        (ROW, "a.png again"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(root: Path, line: Any, found: str) -> None:
    write(root, ROW, line)
    (problem,) = problems(root)
    assert problem.where.endswith("metadata.jsonl line 2")
    assert found in problem.found


def test_an_absolute_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    write(root, {"file_name": str(root / "a.png"), "text": "x"})
    (problem,) = problems(root)
    assert "line 1" in problem.where


def test_pictures_that_no_line_names_are_told(root: Path) -> None:
    write(root, ROW)
    (problem,) = problems(root)
    assert problem.found == "no line for b.png"


def test_an_empty_file_is_a_problem(root: Path) -> None:
    for name in ("a.png", "b.png"):
        (root / name).unlink()
    write(root)
    (problem,) = problems(root)
    assert problem.found == "no line"


def test_metadata_one_folder_below_is_pointed_to(root: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    write(root, ROW)
    moved = above / "train"
    moved.mkdir()
    (root / "metadata.jsonl").rename(moved / "metadata.jsonl")
    (problem,) = problems(above)
    assert problem.fix.startswith(f"write dataset.dir={moved},")


def test_metadata_beside_kohyas_folders_is_refused(root: Path) -> None:
    write(root, ROW)
    (root / "more").rename(root / "2_girl")
    (problem,) = problems(root)
    assert "metadata.jsonl beside folders" in problem.found


def test_loose_pictures_are_taken_with_repeats_and_not_without(root: Path) -> None:
    (root / "more/c.png").unlink()
    (root / "more").rmdir()
    (problem,) = problems(root)
    assert problem.fix.startswith("write dataset.num_repeats=10 ")
    (root / "a.txt").write_text("x, a")
    (problem,) = problems(root, num_repeats=4)
    assert "b.png" in problem.found
    images = read(root, num_repeats=4, class_tokens="girl").images
    assert [(image.repeats, image.caption) for image in images] == [(4, "x, a"), (4, "girl")]


@pytest.mark.parametrize("number", [0, -1])
def test_repeats_are_above_zero(number: int) -> None:
    tree = config_tree(replace(PLAIN, num_repeats=number))
    (problem,) = check_value(DatasetOptions, tree, "dataset")
    assert problem.where == "dataset.num_repeats"


def test_repeats_beside_folders_that_name_theirs_have_no_effect(root: Path) -> None:
    (root / "more").rename(root / "2_girl")
    (problem,) = problems(root, num_repeats=3)
    assert problem.where == "dataset.num_repeats"


def test_class_pictures_may_have_metadata_too(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "2_girl"
    data.mkdir(parents=True)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(data / "z.png")
    (root / "b.png").unlink()
    write(root, ROW)
    images = read(data.parent, reg_dir=str(root)).images
    assert [(image.is_regularization, image.repeats) for image in images] == [(False, 2), (True, 2)]
