"""Reading a kohya folder: buckets to the pixel, captions, and every kind of bad input."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from optbench.config.build import check_value, config_tree
from optbench.data import bucket_chooser, check_dataset_options, read_dataset
from optbench.errors import DatasetError, Problem
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN

OPTIONS = replace(PLAIN, shuffle_caption=True, keep_tokens=1)
LISTED = replace(OPTIONS, bucket_no_upscale=False)
SDXL = replace(OPTIONS, resolution=(1024, 1024))


def draw(path: Path, size: tuple[int, int] = (128, 64), color: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 90, 200)).save(path)
    return path


def encoded(kind: str, image: Image.Image | None = None) -> bytes:
    stream = io.BytesIO()
    (image or Image.effect_noise((64, 64), 50).convert("RGB")).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two good pictures."""
    draw(tmp_path / "3_girl" / "a.png", (128, 64), 1).with_suffix(".txt").write_text("x, a, b\n")
    draw(tmp_path / "3_girl" / "b.png", (64, 128), 2).with_suffix(".txt").write_text("x, c")
    return tmp_path


def options_of(root: Path, **changes: object) -> DatasetOptions:
    return replace(OPTIONS, dir=str(root), **changes)  # type: ignore[arg-type]


def problems_of(root: Path, **changes: object) -> list[Problem]:
    with pytest.raises(DatasetError) as caught:
        read_dataset(options_of(root, **changes), pixels_per_latent=8)
    return list(caught.value.problems)


def sole_problem(root: Path, **changes: object) -> Problem:
    (problem,) = problems_of(root, **changes)
    return problem


# --- buckets; sizes that kohya's sd-scripts gave when it was run, and rules read in its code ---


@pytest.mark.parametrize(
    ("options", "size", "bucket", "resized"),
    [
        (OPTIONS, (512, 768), (384, 576), (384, 576)),
        (OPTIONS, (1920, 1080), (640, 384), (683, 384)),
        (OPTIONS, (1050, 1080), (448, 448), (448, 461)),
        (OPTIONS, (300, 300), (256, 256), (300, 300)),
        (SDXL, (512, 768), (512, 768), (512, 768)),
        (SDXL, (1000, 1500), (832, 1216), (832, 1248)),
        (SDXL, (1024, 1536), (832, 1216), (832, 1248)),
        (SDXL, (1920, 1080), (1344, 768), (1365, 768)),
        (SDXL, (1050, 1080), (960, 960), (960, 987)),
        (SDXL, (3072, 3000), (960, 960), (983, 960)),
        (OPTIONS, (520, 680), (448, 576), (448, 586)),  # sides are rounded before the floor
        (LISTED, (512, 768), (384, 640), (427, 640)),
        (LISTED, (300, 340), (448, 576), (508, 576)),  # by difference; by logarithm it is 512x512
        (LISTED, (512, 512), (512, 512), (512, 512)),
        (LISTED, (256, 1024), (256, 1024), (256, 1024)),
        (LISTED, (100, 100), (512, 512), (512, 512)),
        (LISTED, (10000, 100), (1024, 256), (25600, 256)),
        (replace(SDXL, bucket_no_upscale=False), (832, 1248), (704, 1024), (704, 1056)),
        (
            replace(SDXL, bucket_no_upscale=False, max_bucket_reso=2048),
            (1000, 1500),
            (832, 1216),
            (832, 1248),
        ),
    ],
)
def test_buckets_are_those_of_kohya(
    options: DatasetOptions,
    size: tuple[int, int],
    bucket: tuple[int, int],
    resized: tuple[int, int],
) -> None:
    assert bucket_chooser(options)(size) == (bucket, resized)


def test_the_listed_buckets_of_512_are_the_known_17() -> None:
    place = bucket_chooser(LISTED)
    sizes = [(w, h) for w in range(64, 1025, 32) for h in range(64, 1025, 32)]
    tall = {(256, h) for h in (832, 896, 960, 1024)} | {(320, 704), (320, 768)}
    tall |= {(384, 640), (448, 576)}
    wanted = tall | {(h, w) for w, h in tall} | {(512, 512)}
    assert len(wanted) == 17
    placed = [place(size) for size in sizes]
    assert {one[0] for one in placed if one is not None} == wanted


def test_a_picture_of_a_listed_size_stays_as_it_is() -> None:
    place = bucket_chooser(LISTED)
    for size in [(256, 896), (320, 768), (576, 448)]:
        assert place(size) == (size, size)


def test_without_buckets_there_is_one_size_that_is_covered() -> None:
    options = replace(LISTED, enable_bucket=False, resolution=(512, 384))
    place = bucket_chooser(options)
    assert place((1920, 1080)) == ((512, 384), (683, 384))
    assert place((100, 300)) == ((512, 384), (512, 1536))


@pytest.mark.parametrize("size", [(63, 200), (200, 63), (40, 90000), (60000, 60)])
def test_no_room_for_a_bucket_is_no_crash(size: tuple[int, int]) -> None:
    assert bucket_chooser(OPTIONS)(size) is None


# --- reading ---


def test_a_folder_is_read_sorted_with_repeats_captions_and_sizes(root: Path) -> None:
    draw(root / "10_a_b" / "z.JPG", (700, 700)).with_suffix(".txt").write_text("y")
    (root / "notes").mkdir()
    (root / "3_girl" / ".hidden.png").write_bytes(b"")
    images = read_dataset(options_of(root), pixels_per_latent=8).images
    assert [(i.path.name, i.repeats, i.class_words, i.caption) for i in images] == [
        ("z.JPG", 10, "a_b", "y"),
        ("a.png", 3, "girl", "x, a, b"),
        ("b.png", 3, "girl", "x, c"),
    ]
    first = images[0]
    assert (first.width, first.height, first.resized, first.bucket) == (
        700,
        700,
        (512, 512),
        (512, 512),
    )
    assert len({image.key for image in images}) == 3
    assert all(len(image.key) == 16 for image in images)


def test_only_the_first_line_of_a_caption_counts_and_its_byte_order_mark_does_not(
    root: Path,
) -> None:
    (root / "3_girl" / "a.txt").write_bytes("\ufeffx, \u00e9t\u00e9 \r\nsecond".encode())
    images = read_dataset(options_of(root), pixels_per_latent=8).images
    assert images[0].caption == "x, \u00e9t\u00e9"


def test_class_words_stand_in_for_a_caption_that_does_not_exist(root: Path) -> None:
    (root / "3_girl" / "a.txt").unlink()
    images = read_dataset(options_of(root), pixels_per_latent=8).images
    assert [image.caption for image in images] == ["girl", "x, c"]


def test_lines_with_words_are_alternatives_where_asked_for(root: Path) -> None:
    (root / "3_girl" / "a.txt").write_text("x, a\n\n  x, b \n")
    (root / "3_girl" / "b.txt").write_text("x, {c|d}")
    dataset = read_dataset(options_of(root), pixels_per_latent=8)
    assert [image.caption for image in dataset.images] == ["x, a", "x, {c|d}"]
    lines, choice = dataset.notices
    assert lines.startswith("1 of 2 images have captions of several lines")
    assert choice.startswith("1 of 2 images have a choice like {a|b}")
    assert choice.endswith("b.png")
    dataset = read_dataset(options_of(root, enable_wildcard=True), pixels_per_latent=8)
    assert [image.caption for image in dataset.images] == ["x, a\nx, b", "x, {c|d}"]
    assert dataset.notices == ()


def test_class_tokens_stand_in_instead_of_the_folders_words(root: Path) -> None:
    assert sole_problem(root, class_tokens="woman").where == "dataset.class_tokens"
    (root / "3_girl" / "a.txt").unlink()
    dataset = read_dataset(options_of(root, class_tokens="woman"), pixels_per_latent=8)
    assert [image.caption for image in dataset.images] == ["woman", "x, c"]
    assert dataset.notices == ("1 of 2 images have no caption but dataset.class_tokens: a.png",)


def test_transparent_and_much_enlarged_pictures_are_named(root: Path) -> None:
    Image.new("RGBA", (128, 64), (1, 2, 3, 0)).save(root / "3_girl" / "a.png")
    Image.new("RGBA", (64, 128), (1, 2, 3, 255)).save(root / "3_girl" / "b.png")
    dataset = read_dataset(options_of(root), pixels_per_latent=8)
    (sentence,) = dataset.notices
    assert "partly transparent" in sentence
    assert sentence.endswith(": a.png")
    listed = options_of(root, bucket_no_upscale=False)
    _, sentence = read_dataset(listed, pixels_per_latent=8).notices
    assert sentence.startswith("2 of 2 images are enlarged more than 2 times")


def test_a_face_detectors_suffix_is_not_part_of_the_captions_name(root: Path) -> None:
    draw(root / "3_girl" / "c_1_2_3_4.png").with_name("c.txt").write_text("face")
    images = read_dataset(options_of(root), pixels_per_latent=8).images
    assert images[-1].caption == "face"


def _other_caption(root: Path) -> None:
    (root / "3_girl" / "a.txt").write_text("x, other")


def _other_pixels(root: Path) -> None:
    draw(root / "3_girl" / "a.png", (128, 64), 99)


def _other_repeats(root: Path) -> None:
    (root / "3_girl").rename(root / "4_girl")


def _other_order(root: Path) -> None:
    for suffix in (".png", ".txt"):
        (root / "3_girl" / f"a{suffix}").rename(root / "3_girl" / f"c{suffix}")


@pytest.mark.parametrize("change", [_other_caption, _other_pixels, _other_repeats, _other_order])
def test_the_fingerprint_changes_with_what_is_trained(
    root: Path, change: Callable[[Path], None]
) -> None:
    before = read_dataset(options_of(root), pixels_per_latent=8).fingerprint
    assert read_dataset(options_of(root), pixels_per_latent=8).fingerprint == before
    change(root)
    assert read_dataset(options_of(root), pixels_per_latent=8).fingerprint != before


def test_the_fingerprint_knows_the_bucket_but_not_the_place(root: Path, tmp_path: Path) -> None:
    before = read_dataset(options_of(root), pixels_per_latent=8).fingerprint
    smaller = options_of(root, resolution=(64, 64), bucket_reso_steps=32)
    assert read_dataset(smaller, pixels_per_latent=8).fingerprint != before
    moved = tmp_path / "moved"
    moved.mkdir()
    (root / "3_girl").rename(moved / "3_girl")
    assert read_dataset(options_of(moved), pixels_per_latent=8).fingerprint == before


# --- bad input ---


def test_a_missing_folder_says_where_it_looked(tmp_path: Path) -> None:
    problem = sole_problem(tmp_path / "nowhere")
    assert problem.where == "dataset.dir"
    assert str(tmp_path / "nowhere") in problem.found
    assert str(Path.cwd()) in problem.fix


@pytest.mark.parametrize(
    ("files", "found", "fix"),
    [
        ([], "nothing", "10_girl"),
        (["girl/a.png"], "girl/", "rename girl/ to 10_girl/"),
        (["a.png", "b.png"], "2 images", "10_girl"),
    ],
)
def test_a_folder_without_repeats_folders_says_what_to_rename(
    tmp_path: Path, files: list[str], found: str, fix: str
) -> None:
    for name in files:
        draw(tmp_path / name)
    problem = sole_problem(tmp_path)
    assert found in problem.found
    assert fix in problem.fix


@pytest.mark.parametrize("name", ["7 a girl", "7-a girl", "7x a girl", "7x_a girl"])
def test_a_nearly_right_name_keeps_its_number(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name / "a.png")
    assert f"rename {name}/ to 7_a girl/ (7 repeats" in sole_problem(tmp_path).fix


def test_what_looks_like_training_data_and_is_left_alone_is_said(root: Path) -> None:
    draw(root / "boy" / "a.png")
    draw(root / "loose.png")
    (root / "notes").mkdir()
    (root / "3_girl" / "IMG_1.HEIC").write_bytes(b"")
    folders, loose, unread = read_dataset(options_of(root), pixels_per_latent=8).notices
    assert folders == "left alone, for their names do not begin with <repeats>_: boy/"
    assert loose.endswith(": loose.png")
    assert unread.endswith(": IMG_1.HEIC")


def test_captions_in_capitals_are_found(root: Path) -> None:
    (root / "3_girl" / "a.txt").rename(root / "3_girl" / "a.TXT")
    if not (root / "3_girl" / "a.txt").exists():  # a file system that tells them apart
        assert "dataset.caption_extension=.TXT" in sole_problem(root).fix


def test_the_repeats_folder_itself_points_to_its_parent(root: Path) -> None:
    assert sole_problem(root / "3_girl").fix.startswith(f"write dataset.dir={root},")


@pytest.mark.parametrize("name", ["0_girl", "-1_girl"])
def test_no_repeats_is_an_error(root: Path, name: str) -> None:
    (root / "3_girl").rename(root / name)
    problem = sole_problem(root)
    assert problem.where.endswith(name)
    assert "1_girl" in problem.fix


def test_a_repeats_folder_without_pictures_is_an_error(root: Path) -> None:
    (root / "2_empty").mkdir()
    assert sole_problem(root).where.endswith("2_empty")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_a_cut_off_picture_is_found_before_anything_is_trained(root: Path, kind: str) -> None:
    whole = encoded(kind)
    (root / "3_girl" / f"c.{kind}").write_bytes(whole)
    read_dataset(options_of(root), pixels_per_latent=8)
    (root / "3_girl" / f"c.{kind}").write_bytes(whole[: len(whole) * 3 // 4])
    assert sole_problem(root).where.endswith(f"c.{kind}")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60)])
def test_bytes_that_are_no_picture_are_an_error(root: Path, content: bytes) -> None:
    (root / "3_girl" / "a.png").write_bytes(content)
    problem = sole_problem(root)
    assert problem.where.endswith("a.png")
    assert " at 0x" not in problem.found


def test_a_folder_named_like_a_picture_and_a_dead_link_are_errors(root: Path) -> None:
    (root / "3_girl" / "c.png").mkdir()
    (root / "3_girl" / "d.png").symlink_to(root / "gone.png")
    assert [Path(p.where).name for p in problems_of(root)] == ["c.png", "d.png"]


def test_pixels_that_are_to_be_turned_are_an_error_instead_of_a_guess(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 64)).save(root / "3_girl" / "c.jpg", exif=exif)
    assert "auto-orient" in sole_problem(root).fix


def test_more_than_8_bits_are_an_error(root: Path) -> None:
    Image.new("I;16", (64, 64)).save(root / "3_girl" / "c.png")
    assert "8-bit" in sole_problem(root).fix


def test_a_picture_too_small_for_a_bucket_is_an_error(root: Path) -> None:
    draw(root / "3_girl" / "c.png", (63, 200))
    problem = sole_problem(root)
    assert "63x200" in problem.found
    assert "bucket_no_upscale=false" in problem.fix


@pytest.mark.parametrize("content", [b"", b" \n", b"\nsecond line", b"\xff\xfe\x00", b"caf\xe9"])
def test_an_empty_or_non_utf8_caption_is_an_error(root: Path, content: bytes) -> None:
    (root / "3_girl" / "a.txt").write_bytes(content)
    assert sole_problem(root).where.endswith("a.txt")


def test_captions_under_another_extension_are_an_error_that_names_it(root: Path) -> None:
    problem = sole_problem(root, caption_extension=".caption")
    assert "a.png, b.png" in problem.found
    assert "dataset.caption_extension=.txt" in problem.fix


def test_neither_captions_nor_class_words_is_an_error(root: Path) -> None:
    for index in range(9):
        draw(root / "2_" / f"{index}.png")
    problem = sole_problem(root)
    assert "0.png, 1.png, 2.png, 3.png, 4.png and 4 more" in problem.found
    assert "2_girl" in problem.fix


def test_everything_that_is_wrong_is_told_together(root: Path) -> None:
    (root / "0_boy").mkdir()
    (root / "3_girl" / "a.png").write_bytes(b"no picture")
    (root / "3_girl" / "b.txt").write_text("")
    draw(root / "3_girl" / "c.png", (20, 20))
    (root / "3_girl" / "c.caption").write_text("words")
    found = problems_of(root)
    assert len(found) == 6
    with_settings = problems_of(root, shuffle_caption=False)
    assert "dataset.keep_tokens" in [problem.where for problem in with_settings]
    assert any(problem.where.endswith("a.png") for problem in with_settings)


@pytest.mark.parametrize(
    ("changes", "num_pixels", "fix"),
    [
        ({"bucket_reso_steps": 8}, 32, "write dataset.bucket_reso_steps=32"),
        (
            {"enable_bucket": False, "bucket_no_upscale": False, "resolution": (520, 512)},
            32,
            "write dataset.resolution=[544,512]",
        ),
    ],
)
def test_buckets_must_be_whole_latents(
    root: Path, changes: dict[str, object], num_pixels: int, fix: str
) -> None:
    options = options_of(root, **changes)
    read_dataset(options, pixels_per_latent=8)
    with pytest.raises(DatasetError) as caught:
        read_dataset(options, pixels_per_latent=num_pixels)
    assert [problem.fix for problem in caught.value.problems] == [fix]


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"bucket_reso_steps": 0}, "bucket_reso_steps=1"),
        ({"bucket_reso_steps": 1024}, "bucket_reso_steps=64"),
        ({"enable_bucket": False}, "bucket_no_upscale=false"),
        ({"bucket_no_upscale": False, "min_bucket_reso": 300}, "min_bucket_reso=256"),
        ({"bucket_no_upscale": False, "min_bucket_reso": 576}, "min_bucket_reso=512"),
        ({"bucket_no_upscale": False, "max_bucket_reso": 1000}, "max_bucket_reso=1024"),
        ({"bucket_no_upscale": False, "max_bucket_reso": 448}, "max_bucket_reso=512"),
        ({"caption_extension": "txt"}, "caption_extension=.txt"),
        ({"caption_extension": ".png"}, "caption_extension=.txt"),
        ({"caption_extension": "./../x"}, "caption_extension=.txt"),
        ({"caption_dropout_rate": -0.1}, "caption_dropout_rate=0.1"),
        ({"caption_dropout_rate": float("nan")}, "caption_dropout_rate=0.1"),
        ({"keep_tokens": -1}, "keep_tokens=0"),
        ({"shuffle_caption": False}, "keep_tokens=0"),
    ],
)
def test_an_impossible_or_ineffective_setting_is_told_with_one_that_works(
    changes: dict[str, object], fix: str
) -> None:
    options = replace(OPTIONS, **changes)  # type: ignore[arg-type]
    wrong = check_value(DatasetOptions, config_tree(options), "dataset")
    (problem,) = wrong or check_dataset_options(options)
    assert problem.fix == f"write dataset.{fix}"
    name, _, value = fix.partition("=")
    repaired: object = {"[512,512]": (512, 512), "false": False}.get(value, value)
    if isinstance(repaired, str) and not repaired.startswith("."):
        repaired = float(repaired) if "." in repaired else int(repaired)
    assert check_dataset_options(replace(options, **{name: repaired})) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bucket_no_upscale": False},
        {"min_bucket_reso": 1, "max_bucket_reso": 2},  # they play no part here
        {"enable_bucket": False, "bucket_no_upscale": False, "bucket_reso_steps": 1024},
        {"shuffle_caption": False, "keep_tokens": 0},
        {"caption_dropout_rate": 1.0},
    ],
)
def test_settings_that_work_are_no_problem(changes: dict[str, object]) -> None:
    assert check_dataset_options(replace(OPTIONS, **changes)) == []  # type: ignore[arg-type]


# --- what is read, and said, by each file's name ---


def notices_of(root: Path, **changes: object) -> tuple[str, ...]:
    return read_dataset(options_of(root, **changes), pixels_per_latent=8).notices


def save(path: Path, image: Image.Image, **how: object) -> None:
    image.save(path, **how)  # type: ignore[arg-type]
    path.with_suffix(".txt").write_text("x, y")


def put_nested(folder: Path) -> None:
    draw(folder / "close-ups" / "deep" / "n.png")
    draw(folder / ".thumbnails" / "hidden.png")


def put_animated(folder: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 200)]
    save(folder / "n.webp", frames[0], save_all=True, append_images=frames[1:])


def put_cmyk(folder: Path) -> None:
    save(folder / "n.jpg", Image.new("CMYK", (64, 64), (9, 9, 9, 9)))


def put_equal(folder: Path) -> None:
    (folder / "n.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "n.txt").write_text("x, y")


def put_sharing(folder: Path) -> None:
    save(folder / "n.jpg", Image.new("RGB", (64, 64)))
    save(folder / "n.png", Image.new("RGB", (64, 64)))


def put_wordless(folder: Path) -> None:
    draw(folder / "n.png", color=9).with_suffix(".txt").write_text(", ,._")


def put_mixed_ending(folder: Path) -> None:
    draw(folder / "m.jpg", color=9).with_suffix(".txt").write_text("x")
    (folder / "m.jpg").rename(folder / "n.Jpg")
    (folder / "m.txt").rename(folder / "n.txt")


@pytest.mark.parametrize(
    ("put", "words", "names"),
    [
        (put_nested, "in folders inside of", "3_girl/close-ups/deep/n.png"),
        (put_animated, "only the first is trained on", "n.webp"),
        (put_cmyk, "are in CMYK", "n.jpg"),
        (put_equal, "2 images have the same bytes as another", "3_girl/a.png = 3_girl/n.png"),
        (put_sharing, "2 images share one caption file", "n.jpg, n.png (n.txt)"),
        (put_wordless, "have a caption without a letter or digit", "n.png"),
        (put_mixed_ending, "passed over by kohya's trainer", "n.Jpg"),
    ],
)
def test_what_may_not_be_meant_is_said_by_name(
    root: Path, put: Callable[[Path], None], words: str, names: str
) -> None:
    put(root / "3_girl")
    (sentence,) = notices_of(root)
    assert words in sentence
    assert names in sentence


def test_a_year_in_a_name_is_said_and_a_date_is_asked_about(root: Path) -> None:
    (root / "3_girl").rename(root / "2024_girl")
    (sentence,) = notices_of(root)
    assert "rename 2024_girl to 10_2024_girl" in sentence
    (root / "2024_girl").rename(root / "20240131_trip")
    problem = sole_problem(root)
    assert problem.found.startswith("20,240,131 uses of each of its images in every epoch")
    assert "rename it to 10_20240131_trip" in problem.fix


def test_a_nearly_right_name_beside_right_ones_is_told_how_to_become_one(root: Path) -> None:
    draw(root / "10x_mychar" / "a.png")
    (sentence,) = notices_of(root)
    assert sentence.endswith(": 10x_mychar/ (to train 10x_mychar/, rename it to 10_mychar/)")


def test_no_wrong_bit_of_a_png_is_trained_on(root: Path) -> None:
    file = root / "3_girl" / "a.png"
    content = file.read_bytes()
    draws = random.Random(1)
    places = draws.sample(range(8 * len(content)), 200)
    for place in [*places, 8 * len(content) - 1]:
        wrong = bytearray(content)
        wrong[place // 8] ^= 1 << place % 8
        file.write_bytes(wrong)
        assert sole_problem(root).where == str(file), place


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", "jpg"), ("webp", "webp"), ("png", "png")])
def test_a_file_without_its_last_bytes_is_refused(root: Path, kind: str, suffix: str) -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    file = root / "3_girl" / f"n.{suffix}"
    save(file, image)
    content = file.read_bytes()
    assert notices_of(root) == ()
    for num_missing in (1, 2, 12, len(content) // 2):
        file.write_bytes(content[:-num_missing])
        assert sole_problem(root).where == str(file), num_missing


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(root: Path, orientation: int) -> None:
    image = Image.new("RGB", (64, 64))
    exif = image.getexif()
    exif[274] = orientation
    save(root / "3_girl" / "n.jpg", image, exif=exif)
    assert notices_of(root) == ()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("x".encode("utf-16"), "a text in UTF-16"),
        ("x, y".encode("utf-16-le"), "a text in UTF-16"),
        ("x".encode("utf-32"), "a text in UTF-32"),
        (b"caf\xe9", "another encoding than UTF-8 (byte 3 is 0xe9)"),
        (b"x\0\1\2y\3\4", "bytes that are no text"),
    ],
)
def test_a_caption_in_another_encoding_is_called_what_it_is(
    root: Path, content: bytes, found: str
) -> None:
    (root / "3_girl" / "a.txt").write_bytes(content)
    assert found in sole_problem(root).found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_caption_ends_where_its_line_ends(root: Path, end: str) -> None:
    text = f"\ufeffx, a\u2028b{end}second"
    (root / "3_girl" / "a.txt").write_bytes(text.encode())
    dataset = read_dataset(options_of(root), pixels_per_latent=8)
    assert dataset.images[0].caption == "x, a\u2028b"


def test_what_only_stands_for_an_image_is_called_what_it_is(root: Path) -> None:
    (root / "3_girl" / "n.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x")
    (root / "3_girl" / "o.png").write_bytes(b"\n<!DOCTYPE html><html></html>")
    (root / "3_girl" / "p.png").mkdir()
    pointer, page, folder = problems_of(root)
    assert pointer.found.startswith("a Git LFS pointer")
    assert page.found.startswith("a saved web page")
    assert "a folder has its name" in folder.found
