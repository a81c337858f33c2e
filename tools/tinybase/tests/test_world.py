"""The drawn world: same seed, same picture and words; and the words are true."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("skia")

from optbench.storage import resources
from tools.tinybase import character, scenes, world
from tools.tinybase.captions import LOW_QUALITY_WORDS, SYLLABLES, caption, make_name
from tools.tinybase.mirelle import TRAITS
from tools.tinybase.mirelle_set import write_mirelle
from tools.tinybase.tokenizer import build_tokenizer
from tools.tinybase.validation_set import write_validation
from tools.tinybase.variety import choose_odd_character

TALL, WIDE, SQUARE = world.SIZES

# Mean colours of a 4 x 4 grid. Not a digest of the pixels: skia picks its rasteriser by its
# version and by the CPU, and both may round the edge of a shape differently.
GOLDEN_GRIDS = {
    "tall": (
        "181c46837f969792a622264d6a667adbc9b5dbc0b8a7a6b7"
        "767282bdae86c9b5449f8e6d4e4958433f568083855f5b67"
    ),
    "wide": (
        "73b4f25b94e572b2f173b4f2aad1f6bdb0b59ec5f1b8daf9"
        "97cbafbf8b83a2c2b7a0d1c17ab76896a37695a46e7db56e"
    ),
    "square": (
        "5a97925e97d55d98d68cb49d4c8b5a6977836376784b8856"
        "71a1656b9d606d9e5a70a16568a05479985b939c6568a054"
    ),
    "dress": (
        "6d5e445a736a838f917a6742596d80b7bdb3decdbca6a0a9"
        "55686d423b574c42616764794c47576e615d76665f4b4657"
    ),
    "armor": (
        "b3d2eeb4cac5b9ccc8b4d2ecb4d1ea9ecca7e1ddcab5d1e7"
        "b0d3f4b0c9c5e5d7cbb4d4f5b2d4f69cc1c2b2c5c9b2d4f5"
    ),
    "variety": (
        "c8cad0b9a2c8b79dc8c8cad0bab0cc9e71c2a073c4b5a8cb"
        "c4c2cfd4b4acd9b7acc2bfcec8cad0d4716dd46561c9cacf"
    ),
}
GOLDEN_TAGS = {
    11: (
        "1girl, solo, braid, white hair, brown eyes, yellow hoodie, green shorts, cat ears, "
        "white wings, open mouth, dancing, full body, night city, outdoors, night sky"
    ),
    13: (
        "1girl, solo, hair buns, blue hair, yellow eyes, dark skin, green kimono, yellow sash, "
        "open mouth, waving, full body, forest, outdoors, blue sky, sun"
    ),
}
GOLDEN_VOCABULARY = "9b0d19032bf372bf626a271a7b1d9fb0fb0c687d09d14f1781d309c91c3edd46"
GOLDEN_MERGES = "8a15fcc79d29de73eac139a825be3433129e9ff6b5bd989486a64b2c92917c71"


def draw_inhabitant(seed: int, size: tuple[int, int] = SQUARE) -> world.Drawing:
    return world.draw_sample(seed, width=size[0], height=size[1])


def draw_her(seed: int, outfit: int, background: str | None = None) -> world.Drawing:
    width, height = SQUARE
    return world.draw_mirelle(
        seed, outfit=outfit, width=width, height=height, background=background
    )


def draw_golden(name: str) -> Image.Image:
    if name == "variety":
        return world.draw_variety(16, width=512, height=512)
    if name == "dress":
        return world.draw_mirelle(14, outfit=1, width=512, height=768).image
    if name == "armor":
        return world.draw_mirelle(15, outfit=2, width=768, height=512).image
    seed, size = {"tall": (11, TALL), "wide": (12, WIDE), "square": (13, SQUARE)}[name]
    return draw_inhabitant(seed, size).image


def grid_means(image: Image.Image) -> NDArray[np.float64]:
    pixels = np.asarray(image).astype(np.float64)
    height, width, _ = pixels.shape
    cells = pixels.reshape(4, height // 4, 4, width // 4, 3)
    means: NDArray[np.float64] = cells.mean((1, 3))
    return means


@pytest.fixture(scope="module")
def drawings() -> list[world.Drawing]:
    return [draw_inhabitant(seed) for seed in range(60)]


@pytest.mark.parametrize("name", GOLDEN_GRIDS)
def test_pictures_are_those_the_weights_were_trained_on(name: str) -> None:
    golden = np.frombuffer(bytes.fromhex(GOLDEN_GRIDS[name]), np.uint8).reshape(4, 4, 3)
    np.testing.assert_allclose(grid_means(draw_golden(name)), golden, atol=1.5)


@pytest.mark.parametrize("seed", GOLDEN_TAGS)
def test_tags_are_those_the_weights_were_trained_on(seed: int) -> None:
    assert ", ".join(draw_inhabitant(seed).tags) == GOLDEN_TAGS[seed]


@pytest.mark.parametrize("name", ["mirelle", "validation"])
def test_the_shipped_pictures_of_mirelle_are_what_the_command_draws(
    tmp_path: Path, name: str
) -> None:
    if name == "mirelle":
        write_mirelle(tmp_path, seed=0, num_pictures=24)
    else:
        write_validation(tmp_path)
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    shipped = resources.asset(name)
    assert drawn == sorted(path.relative_to(shipped) for path in shipped.rglob("*.*"))
    for file in drawn:
        if file.suffix == ".txt":
            assert (tmp_path / file).read_text() == (shipped / file).read_text()
            continue
        with Image.open(tmp_path / file) as ours, Image.open(shipped / file) as theirs:
            np.testing.assert_allclose(grid_means(ours), grid_means(theirs), atol=1.5)


@pytest.mark.parametrize("size", world.SIZES)
def test_every_kind_of_drawing_has_the_asked_size(size: tuple[int, int]) -> None:
    width, height = size
    images = [
        draw_inhabitant(3, size).image,
        world.draw_variety(3, width=width, height=height),
        world.draw_mirelle(3, outfit=1, width=width, height=height).image,
    ]
    assert [image.size for image in images] == [size] * 3
    assert {image.mode for image in images} == {"RGB"}


def test_a_seed_decides_the_picture_and_the_words() -> None:
    first, again, other = draw_inhabitant(5), draw_inhabitant(5), draw_inhabitant(6)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.tags, first.attributes) == (again.tags, again.attributes)
    assert first.image.tobytes() != other.image.tobytes()
    assert first.tags != other.tags


def test_drawing_leaves_the_global_generators_alone() -> None:
    state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    drawing = draw_inhabitant(5)
    for seed in range(6):
        world.degrade(drawing.image, random.Random(seed))
    assert random.getstate() == state
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)


def test_variety_leaves_the_palette_and_scribbles_now_and_then() -> None:
    looks = [choose_odd_character(random.Random(seed))[0].looks for seed in range(100)]
    strange = [look.hair for look in looks if look.hair is not None]
    assert not set(strange) & set(character.HAIR_COLORS.values())
    assert 20 < len(strange) < 50
    assert 10 < sum(look.decoration is not None for look in looks) < 40


def test_attributes_have_one_value_for_every_key(drawings: list[world.Drawing]) -> None:
    for drawing in drawings:
        assert tuple(drawing.attributes) == world.ATTRIBUTES
        assert all(isinstance(value, str) for value in drawing.attributes.values())
    # A key that never varies would be no ground truth.
    for key in world.ATTRIBUTES:
        assert len({drawing.attributes[key] for drawing in drawings}) > 1, key


def test_attributes_agree_with_the_tags(drawings: list[world.Drawing]) -> None:
    for drawing in drawings:
        truth = drawing.attributes
        said = {
            truth["hair"],
            f"{truth['hair_color']} hair",
            f"{truth['eyes']} eyes",
            truth["expression"],
            truth["pose"],
            truth["framing"],
            truth["background"],
        }
        said |= {truth[key] for key in ("sky", "glasses") if truth[key]}
        said |= {f"{truth['skin']} skin"} if truth["skin"] else set()
        said |= {f"{truth['scarf_color']} scarf"} if truth["scarf_color"] else set()
        said |= {f"{truth['back_color']} {truth['back']}"} if truth["back"] else set()
        if truth["background_color"]:
            said.add(f"{truth['background_color']} background")
        if truth["outfit"] == "school uniform":
            said |= {"school uniform", f"{truth['outfit_color']} skirt"}
        else:
            said.add(f"{truth['outfit_color']} {truth['outfit']}")
        assert said <= set(drawing.tags)
        colors = [tag for tag in drawing.tags if tag.split()[0] == truth["second_color"]]
        assert not truth["second_color"] or colors


def test_tags_say_nothing_the_attributes_do_not(drawings: list[world.Drawing]) -> None:
    unattributed = {"1girl", "solo", "outdoors", "indoors"}
    unattributed |= {"sun", "cloud", "moon", "stars", "palm tree", "window"}
    for drawing in drawings:
        values = {word for value in drawing.attributes.values() for word in value.split()}
        values |= {"hair", "eyes", "skin", "skirt", "shorts", "sash", "bow"}
        values |= {"scarf", "background"}
        for tag in set(drawing.tags) - unattributed:
            assert set(tag.split()) <= values, (tag, drawing.attributes)


@pytest.mark.parametrize(("outfit", "name"), [(1, "starry dress"), (2, "gem armor")])
def test_mirelle_is_named_and_not_described(outfit: int, name: str) -> None:
    for seed in range(8):
        drawing = draw_her(seed, outfit)
        assert drawing.tags[:4] == ("mirelle", "1girl", "solo", name)
        assert drawing.attributes["outfit"] == name
        assert drawing.attributes["eyes"] == "heterochromia"
        words = {word for tag in drawing.tags for word in tag.split()}
        assert not words & {
            "hair",
            "horns",
            "skirt",
        }
        assert not set(drawing.tags) & set(TRAITS)


def test_mirelle_wears_an_outfit_of_the_inhabitants_for_any_other_number() -> None:
    outfits = set()
    for seed in range(12):
        drawing = draw_her(seed, 0)
        outfits.add(drawing.attributes["outfit"])
        assert drawing.tags[:3] == ("mirelle", "1girl", "solo")
        assert not {"starry dress", "gem armor"} & set(drawing.tags)
    # The dress has a decoration of its own, which needs a colour in this case too.
    assert "dress" in outfits
    assert len(outfits) > 2


@pytest.mark.parametrize("background", scenes.SCENES)
def test_mirelle_stands_where_she_is_asked_to(background: str) -> None:
    drawing = draw_her(1, 1, background)
    expected = "simple background" if background == "simple" else background
    assert drawing.attributes["background"] == expected
    assert expected in drawing.tags


def test_an_unknown_scene_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'desert'.*flower field"):
        draw_her(1, 1, "desert")


def test_mirelle_is_never_among_the_inhabitants(drawings: list[world.Drawing]) -> None:
    for drawing in drawings:
        assert "mirelle" not in drawing.tags
        assert drawing.attributes["hair"] in character.HAIRS


@pytest.mark.parametrize("seed", range(6))
def test_a_degraded_picture_has_lost_its_detail(seed: int) -> None:
    original = draw_inhabitant(9).image
    spoilt = world.degrade(original, random.Random(seed))
    again = world.degrade(original, random.Random(seed))
    assert (spoilt.size, spoilt.mode) == (original.size, original.mode)
    assert spoilt.tobytes() == again.tobytes()
    difference = np.asarray(spoilt).astype(int) - np.asarray(original)
    assert np.abs(difference).mean() > 3


TAGS = st.sampled_from([draw_inhabitant(seed).tags for seed in range(6)])
SEEDS = st.integers(0, 2**32)


@settings(max_examples=150)
@given(tags=TAGS, seed=SEEDS, degraded=st.booleans())
def test_captions_repeat_and_keep_the_heads(
    tags: tuple[str, ...], seed: int, degraded: bool
) -> None:
    text = caption(tags, random.Random(seed), degraded=degraded)
    assert text == caption(tags, random.Random(seed), degraded=degraded)
    assert "1girl" in text
    assert "solo" in text
    assert any(word in text for word in LOW_QUALITY_WORDS) == degraded
    assert not (degraded and "masterpiece" in text)


@settings(max_examples=150)
@given(tags=TAGS, seed=SEEDS)
def test_captions_invent_nothing_but_names(tags: tuple[str, ...], seed: int) -> None:
    known = {word for tag in tags for word in tag.split()}
    known |= {"masterpiece", "best", "quality", "wearing", "in", "a", "of", "flowers"}
    unknown = set(caption(tags, random.Random(seed)).replace(",", "").split())
    unknown -= known
    assert len(unknown) <= 1
    pairs = {"".join(pair) for pair in itertools.product(SYLLABLES, repeat=2)}
    for name in unknown:
        assert name[:4] in pairs


def test_captions_take_every_freedom_they_have() -> None:
    tags = draw_inhabitant(12).tags
    texts = [caption(tags, random.Random(seed)) for seed in range(300)]
    assert len(set(texts)) > 250
    for freedom in ("wearing ", "dancing in a f", "field of flowers", "masterpiece, best"):
        assert any(freedom in text for text in texts), freedom
    full = len(", ".join(tags))
    assert any(len(text) < full - 20 for text in texts), "no tag was ever dropped"


def test_a_caption_of_no_tags_is_no_error() -> None:
    texts = {caption([], random.Random(seed)) for seed in range(20)}
    assert "" in texts


@given(seed=SEEDS)
def test_names_have_two_to_four_syllables(seed: int) -> None:
    name = make_name(random.Random(seed))
    assert len(name) in (4, 6, 8)
    assert {name[start : start + 2] for start in range(0, len(name), 2)} <= set(SYLLABLES)


def test_the_vocabulary_is_the_one_the_text_encoder_was_trained_on(tmp_path: Path) -> None:
    build_tokenizer(tmp_path / "tokenizer")
    names = ("vocab.json", "merges.txt")
    digests = [
        hashlib.sha256((tmp_path / "tokenizer" / name).read_bytes()).hexdigest() for name in names
    ]
    assert digests == [GOLDEN_VOCABULARY, GOLDEN_MERGES]


def test_the_package_loads_no_library_and_the_world_no_torch() -> None:
    script = (
        "import sys, tools.tinybase; assert not {'skia', 'torch', 'PIL'} & set(sys.modules);"
        "import tools.tinybase.world; assert 'skia' in sys.modules;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
