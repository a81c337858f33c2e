"""Configurations of other trainers, each with what it means here."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from optbench.cli.trainers import formats, import_command
from optbench.cli.trainers.families import family
from optbench.cli.trainers.folders import ImageFolder, place
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.optimizers import optimizers
from optbench.cli.trainers.options import READ_AT, table
from optbench.config import rules
from optbench.data.layouts import find_images
from optbench.data.rules import Findings
from optbench.errors import ConfigError
from optbench.storage import resources
from tests.builders.kohya import config_of, runnable, tree_of
from tools import coming_from

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "configs"
EXPECTED: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
    OmegaConf.load(HERE / "expected.yaml"), resolve=False
)
SCHEMAS = json.loads((HERE.parents[1] / "parity" / "schemas.json").read_text())


@pytest.fixture(autouse=True)
def _nothing_need_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_base", "check_tracker"):
        monkeypatch.setattr(rules, name, lambda _: [])


def lora_file(path: Path, metadata: dict[str, str]) -> Path:
    """Write a safetensors file without a number in it."""
    header = json.dumps(
        {"__metadata__": metadata, "x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    ).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def imported(names: str, folder: Path) -> Imported:
    paths = [CONFIGS / name for name in names.split()]
    if names.endswith(".metadata.json"):
        name = names.removesuffix(".metadata.json")
        paths = [lora_file(folder / f"{name}.safetensors", json.loads(paths[0].read_text()))]
    found = formats.convert([formats.read(path) for path in paths])
    assert len(found) == 1
    return found[0]


def sentences(found: Imported) -> str:
    return "\n".join([*found.notes, *found.lost, *found.ignored, *found.not_needed])


@pytest.mark.parametrize("names", EXPECTED)
def test_a_configuration_means_this_here(names: str, tmp_path: Path) -> None:
    expected, found = EXPECTED[names], imported(names, tmp_path)
    # posix=False would keep quotes: a backslash is a letter in Windows' paths.
    words = shlex.shlex(expected.get("has", ""), posix=True)
    words.whitespace_split, words.escape = True, ""
    assert set(words) <= set(found.overrides)
    keys = {override.lstrip("+~").partition("=")[0] for override in found.overrides}
    assert not keys & set(expected.get("lacks", ()))
    for part in expected.get("says", ()):
        assert part in sentences(found)
    assert bool(found.refused) == ("refused" in expected)
    for sentence in found.refused:
        assert f"{expected['refused']} cannot be trained here yet" in sentence


@pytest.mark.parametrize("names", EXPECTED)
def test_what_is_printed_can_be_planned(names: str, tmp_path: Path) -> None:
    found = imported(names, tmp_path)
    overrides = runnable(found.overrides)
    if found.refused:
        overrides = ["base=sd15" if item.startswith("base=") else item for item in overrides]
    written = [item.partition("=")[0] for item in overrides if not item.startswith("prompts.")]
    assert len(written) == len(set(written)), "a key twice"
    config_of(*overrides)


def test_there_are_sixty_of_all_kinds() -> None:
    assert len({name for names in EXPECTED for name in names.split()}) >= 60


def test_a_file_without_settings_says_what_it_tells(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of ai-toolkit, after 1500 steps, on sdxl_1.0"):
        imported("file_ai_toolkit.metadata.json", tmp_path)


def test_data_sets_alone_are_refused(tmp_path: Path) -> None:
    for name in ("musubi_data.toml", "ot_concepts.json", "st_backend.json", "dp_data.toml"):
        with pytest.raises(ConfigError, match="without its training"):
            imported(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", "{}"),
        ("x.json", "[1, 2]"),
        ("x.json", "{"),
        ("x.toml", "a = "),
        ("x.yaml", "job: extension"),
        ("x.yaml", "a: [1"),
        ("x.yaml", "config: {process: [3]}"),
        ("x.toml", "[model]\ntype = 3\n[adapter]\nrank = 'many'\n"),
        ("x.json", '{"training_method": "LORA", "lora_rank": "many"}'),
        ("x.json", '{"training_method": "LORA", "concepts": 3}'),
        ("x.json", '{"training_method": "LORA", "concepts": [3]}'),
        ("x.json", '{"model_family": "sdxl", "train_batch_size": [1]}'),
        ("x.toml", "[[datasets]]\nimage_directory = 3\n"),
        ("x.safetensors", "no header"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert import_command.main([str(tmp_path / name)]) == 2
    assert "->" in capsys.readouterr().err


def test_the_command_prints_a_command_or_a_sweep(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert import_command.main([str(CONFIGS / "plain.toml")]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert import_command.main([str(CONFIGS / "plain.toml"), "--yaml"]) == 0
    text = capsys.readouterr().out
    tree = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(tree, dict)
    assert shlex.split(tree["settings"]["plain"]) == command[command.index("base=sd15") :]
    assert text.startswith("# @package _global_\n# Question: ")
    assert import_command.main([str(CONFIGS / "zimage.sh")]) == 2
    printed = capsys.readouterr()
    assert "Z-Image cannot be trained here yet" in printed.err
    assert "network.dim=32" in printed.out
    assert import_command.main(["--nonsense"]) == 2


# What nobody writes on purpose, for options of any type.
ODD = [
    None,
    True,
    0,
    -1,
    3.5,
    "",
    "x",
    "1e-4",
    [],
    [1],
    {},
    {"a": 1},
    [[1, 2]],
    "512",
    float("inf"),
]
OPENING: dict[str, dict[str, Any]] = {
    "onetrainer": {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15"},
    "simpletuner": {"model_family": "sdxl"},
    "peft": {"peft_type": "LORA"},
}


@given(st.data())
def test_any_values_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    trainer = data.draw(st.sampled_from([*OPENING, "ai-toolkit"]))
    names = data.draw(st.lists(st.sampled_from(sorted(table(trainer))), max_size=8))
    tree: dict[str, Any] = {}
    for name in names:
        *parents, last = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[last] = data.draw(st.sampled_from(ODD))
    tree |= OPENING.get(trainer, {})
    if trainer == "ai-toolkit":
        sets = tree.pop("datasets", {})
        tree = {"config": {"process": [tree | ({"datasets": [sets]} if sets else {})]}}
    path = tmp_path_factory.mktemp("odd") / "x.json"
    path.write_text(json.dumps(tree))
    with contextlib.suppress(ConfigError):  # words; anything else is a fault
        assert len(formats.convert([formats.read(path)])) == 1


# --- the tables ---


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_table_has_every_option_of_the_trainer(name: str) -> None:
    assert set(table(name)) == set(SCHEMAS[name])
    for option in table(name).values():
        type_, default, choices = SCHEMAS[name][option.name]
        assert (option.type, option.default) == (type_, default), option.name
        assert set(option.choices) <= set(choices)
        assert option.meaning
        assert option.how in ("same", "read", "unneeded", "missing")
        assert option.remark or option.how != "unneeded", option.name


def test_the_page_for_people_is_made_from_the_tables() -> None:
    assert coming_from.PAGE.read_text(encoding="utf-8") == coming_from.page(), "type make docs"
    assert set(coming_from.SECTIONS) == set(READ_AT)


def test_every_table_says_what_it_was_read_at() -> None:
    folder = Path(formats.__file__).parent / "tables"
    names = {path.stem for path in folder.glob("*.csv")} - {"optimizers", "simpletuner-env"}
    assert names == set(READ_AT)


@pytest.mark.parametrize("name", sorted(READ_AT))
def test_a_setting_named_in_a_table_exists(name: str) -> None:
    tree = tree_of()
    for option in table(name).values():
        if not option.ours or option.ours.startswith("--"):
            continue
        section, _, key = option.ours.partition(".")
        assert section in tree, option.name
        assert not key or key in tree[section] or key == "args", option.ours


@pytest.mark.parametrize("trainer", sorted({"onetrainer", "ai-toolkit", "simpletuner"}))
def test_every_named_optimizer_has_a_recipe_that_exists(trainer: str) -> None:
    recipes = {file.stem for file in (resources.conf_dir() / "optimizer").glob("*.yaml")}
    assert {named.recipe for named in optimizers(trainer).values()} <= recipes | {""}
    if choices := SCHEMAS[trainer].get("optimizer.optimizer", [0, 0, []])[2]:
        assert {choice.lower() for choice in choices} == set(optimizers(trainer))


@pytest.mark.parametrize(
    ("name", "ours", "words"),
    [
        ("STABLE_DIFFUSION_15", "sd15", "sd15"),
        ("sd1x", "sd15", "sd15"),
        ("STABLE_DIFFUSION_21_BASE", "sd2", "sd2"),
        ("STABLE_DIFFUSION_XL_10_BASE", "sdxl", "sdxl"),
        ("STABLE_DIFFUSION_XL_10_BASE_INPAINTING", None, "an inpainting or depth model"),
        ("stable-diffusion-xl-base-1.0", "sdxl", "sdxl"),
        ("FLUX.2-klein-base-4B", None, "FLUX.2"),
        ("flux_kontext", None, "FLUX.1 Kontext"),
        ("STABLE_DIFFUSION_35", None, "Stable Diffusion 3"),
        ("something-new", None, "something-new"),
    ],
)
def test_families_have_their_own_words(name: str, ours: str | None, words: str) -> None:
    assert family(name) == (ours, words)


# --- folders ---


def test_folders_that_lie_as_ours_are_named_by_their_parent() -> None:
    folders = [ImageFolder("/d/10_cat", 10), ImageFolder("/d/3_dog", 3)]
    assert place(folders).settings == {"dataset.dir": "/d"}
    assert not place(folders).commands
    moved = place([ImageFolder("/d/10_cat", 5), ImageFolder("/d/3_dog", 3)])
    assert moved.commands[1:] == ["ln -s /d/10_cat data/5_cat", "ln -s /d/3_dog data/3_dog"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["cat", "my dog"]), st.integers(1, 9)),
        min_size=2,
        max_size=4,
        unique_by=lambda one: (one[0], one[1]),
    )
)
def test_a_folder_of_links_holds_every_image_as_often_as_asked(
    tmp_path_factory: pytest.TempPathFactory, listed: list[tuple[str, str, int]]
) -> None:
    root = tmp_path_factory.mktemp("links")
    folders = []
    for parent, name, repeats in listed:
        folder = root / parent / name
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
        folders.append(ImageFolder(str(folder), repeats))
    placed = place(folders, beside=str(root / "data"))
    for command in placed.commands:
        program, *words = shlex.split(command)
        if program == "ln":
            Path(words[2]).symlink_to(words[1])
        else:
            Path(words[1]).mkdir()
    found = find_images(Path(str(placed.settings["dataset.dir"])), "dataset.dir", None, Findings())
    assert sorted((folder.repeats, len(folder.images)) for folder in found) == sorted(
        (repeats, 1) for _, _, repeats in listed
    )
    shutil.rmtree(root)


# --- numbers that mean something else there ---


def onetrainer(folder: Path, **settings: object) -> list[str]:
    tree = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", **settings}
    (folder / "ot.json").write_text(json.dumps(tree))
    return formats.convert([formats.read(folder / "ot.json")])[0].overrides


@given(st.integers(2, 5000), st.integers(1, 8))
def test_onetrainers_warm_up_counts_batches(
    tmp_path_factory: pytest.TempPathFactory, warmup: int, accumulated: int
) -> None:
    found = onetrainer(
        tmp_path_factory.mktemp("ot"),
        learning_rate_warmup_steps=warmup,
        gradient_accumulation_steps=accumulated,
        learning_rate_scheduler="COSINE",
    )
    assert f"lr_scheduler.warmup_steps={warmup // accumulated}" in found


@given(st.integers(0, 50))
def test_simpletuners_repeats_are_further_uses(
    tmp_path_factory: pytest.TempPathFactory, repeats: int
) -> None:
    folder = tmp_path_factory.mktemp("st")
    (folder / "c.json").write_text(json.dumps({"model_family": "sdxl", "model_type": "lora"}))
    backend = [{"id": "a", "type": "local", "instance_data_dir": "/d", "repeats": repeats}]
    (folder / "d.json").write_text(json.dumps(backend))
    found = formats.convert([formats.read(folder / name) for name in ("c.json", "d.json")])[0]
    assert f"dataset.num_repeats={repeats + 1}" in found.overrides


@given(st.integers(1, 5000), st.integers(1, 8), st.booleans())
def test_ai_toolkits_steps_are_batches_or_updates(
    tmp_path_factory: pytest.TempPathFactory, steps: int, accumulated: int, is_legacy: bool
) -> None:
    name = "gradient_accumulation_steps" if is_legacy else "gradient_accumulation"
    train = {"steps": steps, name: accumulated, "lr": 1e-4}
    process = {"type": "sd_trainer", "train": train, "model": {"name_or_path": "m"}}
    path = tmp_path_factory.mktemp("ai") / "job.json"
    path.write_text(json.dumps({"config": {"process": [process]}}))
    found = formats.convert([formats.read(path)])[0].overrides
    updates = steps // accumulated if is_legacy else steps
    assert f"train.max_steps={max(1, updates)}" in found
    assert accumulated == 1 or f"train.gradient_accumulation={accumulated}" in found
