"""What a person or a stranger may give, and the sentence each gets: never a traceback.

One table per place where something comes in: command line, recipes, data sets, bases, LoRA files,
and files of our own. Command lines are composed many mistakes at a time, as they are told at once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from optbench.config.compose import compose_runs
from optbench.data import read_dataset
from optbench.errors import OptbenchError, Problem, describe
from optbench.lora.initial_weights import initial_weights_of
from optbench.models.files.rules import check_base
from optbench.optim.build import check_arguments
from optbench.optim.recipes import check_package
from optbench.storage import files
from optbench.storage.rundir import RunDir, read_config
from optbench.training.state import read_state
from tests.builders.dataset_options import PLAIN as DATA
from tests.builders.lora_files import random_tensors, write_lora
from tests.builders.network_options import PLAIN_NETWORK
from tests.builders.small_training import ADAMW
from tests.models.test_files import options as base_options

# The command line: what is typed -> the sentence, of its own `where`.
WRONG_VALUES = {
    "train.epochs=0": "train.epochs: found 0; expected a whole number of 1 or more",
    "train.batch_size=-1": "train.batch_size: found -1; expected a whole number of 1 or more",
    "train.max_steps=0": "train.max_steps: found 0; expected a whole number of 1 or more",
    "train.gradient_accumulation=0": "train.gradient_accumulation: found 0; expected a whole",
    "train.clip_skip=0": "train.clip_skip: found 0; expected a whole number of 1 or more",
    "train.num_threads=0": "train.num_threads: found 0; expected a whole number of 1 or more",
    "train.max_grad_norm=-1": "train.max_grad_norm: found -1; expected a norm above 0, or 0 for n",
    "train.device=gpu": "train.device: found 'gpu'; expected auto, cpu, mps, cuda or cuda:NUMBER",
    "train.mixed_precision=fp8": "train.mixed_precision: found 'fp8'; expected one of no, fp16,",
    "train.save_precision=double": "train.save_precision: found 'double'; expected one of float,",
    "train.attention=flash": "train.attention: found 'flash'; expected one of sdpa, xformers,",
    "train.epoch=5": "train.epoch: found an unknown setting",
    "nonsense.key=1": "nonsense.key: found an unknown setting",
    "network.dim=0": "network.dim: found 0; expected a whole number of 1 or more",
    "network.alpha=-1": "network.alpha: found -1; expected a number above 0",
    "network.conv_alpha=4": "network.conv_alpha: found 4 while network.conv_dim is null",
    "network.dropout=1": "network.dropout: found 1; expected a number from 0 up to, but not",
    "network.rank_dropout=-0.1": "network.rank_dropout: found -0.1; expected a number from 0 up t",
    "network.module_dropout=2": "network.module_dropout: found 2; expected a number from 0 up to,",
    "lr_mult=0": "lr_mult: found 0; expected a number above 0",
    "seed=-1": "seed: found -1; expected a whole number from 0 to 2^63 - 1",
    "sweep_name='../elsewhere'": "sweep_name: found '../elsewhere'; expected letters, digits",
    "optimizer.lr=-1": "optimizer.lr: found -1; expected a rate above 0",
    "lr_scheduler.warmup_steps=-1": "lr_scheduler.warmup_steps: found -1; expected whole steps (1",
    "loss.min_snr_gamma=-5": "loss.min_snr_gamma: found -5; expected a number above 0, or null",
    "loss.noise_offset=-1": "loss.noise_offset: found -1; expected a number above 0, or null",
    "loss.min_timestep=2000": "found timesteps from 2000 up to, but not including, 1000",
    "render.steps=0": "render.steps: found 0; expected a whole number of 1 or more",
    "render.cfg_scale=0": "render.cfg_scale: found 0; expected a number above 0",
    "render.sampler=Magic": "render.sampler: found 'Magic'; expected one of DDIM,",
    "render.seeds=[1,1]": "render.seeds: found [1, 1]; expected at least one seed, and none twice",
    "validate.timesteps=[1000]": "validate.timesteps: found [1000]; expected timesteps from 0 to",
    "validate.dir=/nowhere": "validate.dir: found /nowhere, which does not exist; expected a",
}
WRONG_TYPES = {
    "train.epochs=many": "train.epochs: found 'many'; expected a whole number",
    "train.batch_size=1.5": "train.batch_size: found 1.5; expected a whole number",
    "network.dim=wide": "network.dim: found 'wide'; expected a whole number",
    "seed=abc": "seed: found 'abc'; expected a whole number",
    "optimizer.lr=fast": "optimizer.lr: found 'fast'; expected a rate above 0",
    "render.enabled=perhaps": "render.enabled: found 'perhaps'; expected true or false",
    "network.train_unet=false": "found neither unet nor text encoder; expected at least one part",
    "network.train_text_encoder=false": "found neither unet nor text encoder",
    "dataset.resolution=512": "dataset.resolution: found 512; expected a list of 2, each a whole",
    "dataset.flip_aug=2": "dataset.flip_aug: found 2; expected true or false",
    "prompts.prompts.a.width=100": "prompts.prompts.a.width: found 100; expected a multiple of 8",
}
WRONG_COMMANDS = {
    "optimizer=adamv": "optimizer: found an unknown option 'adamv'; expected one of adafactor,",
    "network.dim=4,8": "network.dim: found 'network.dim=4,8'; expected one value, because this is",
    "-m network.dim=4,4": "found 'network.dim=4', the same weights as 'network.dim=4'; expected",
    "-m seed=range(3,3)": "found no run at all: a key is swept over no value",
    "--config-dir=/nowhere": "--config-dir: found /nowhere, where there is no folder",
    "--config-name=x": "the command line: found --config-name; expected the config that ships",
    "optimizer": "the command line: found 'optimizer'; expected key=value",
    "optimizer.args.betas=[0.9": "-> write 'optimizer.args.betas=[0.9]'",
    "dataset=folder dataset.dir=/nowhere": "dataset.dir: found /nowhere, which is no folder",
    "network.weights=/nowhere.safetensors": "network.weights: found /nowhere.safetensors, where",
    "-m sweep_name=a,b": "sweep_name and runs_dir: found runs for runs/a, runs/b; expected one",
    "optimizer=prodigy optimizer.unet_lr=0.5": "found 0.5 for the unet and 1 for the text encoder",
    "lr_scheduler=adafactor": "lr_scheduler (recipe adamw): found the schedule adafactor; expected",
}

RECIPES = {
    "os.system": "found os.system, of Python's own library, which has no optimizer",
    "builtins.eval": "found builtins.eval, of Python's own library, which has no optimizer",
    "subprocess.Popen": "found subprocess.Popen, of Python's own library",
    "eval": "found the class 'eval'; expected a dotted path",
    "torch.load": "found torch.load, which is no torch.optim.Optimizer; expected an optimizer",
    "torch.hub.load": "found torch.hub.load, which is no torch.optim.Optimizer",
    "torch.optim.Adamm": "found no Adamm in that module; expected the class torch.optim.Adamm",
    "no_such_package.Adam": "found no package torch, which has no_such_package.Adam",
}


@functools.lru_cache(maxsize=8)
def told(*arguments: str) -> str:
    """Return everything a command line is told, once for all its mistakes."""
    with pytest.raises(OptbenchError) as caught:
        compose_runs(arguments)
    return str(caught.value)


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize("typed", WRONG_VALUES)
def test_a_value_that_cannot_be(typed: str) -> None:
    assert WRONG_VALUES[typed] in told(*WRONG_VALUES)


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize("typed", WRONG_TYPES)
def test_a_value_of_another_type(typed: str) -> None:
    assert WRONG_TYPES[typed] in told(*WRONG_TYPES)


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize("typed", WRONG_COMMANDS)
def test_a_command_that_means_nothing(typed: str) -> None:
    assert WRONG_COMMANDS[typed] in told(*typed.split(" "))


@pytest.mark.parametrize("target", RECIPES)
def test_a_recipe_that_names_no_optimizer(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is called; os.system would even print what it is given."""
    options = replace(ADAMW, target=target)
    problems = check_package(options) or check_arguments(options)
    assert RECIPES[target] in describe(problems)
    assert not any(capsys.readouterr())


# Data sets: what lies in the folder.


def picture(folder: Path, name: str = "a.png", *, size: tuple[int, int] = (64, 64)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 200)).save(path)
    return path


def caption(folder: Path, content: bytes) -> None:
    picture(folder).with_suffix(".txt").write_bytes(content)


def cut_off(folder: Path) -> None:
    path = picture(folder)
    path.with_suffix(".txt").write_text("a thing")
    path.write_bytes(path.read_bytes()[:-40])


def described(folder: Path, line: str) -> None:
    picture(folder)
    (folder / "metadata.jsonl").write_text(line)


def row(name: str, text: object = "a thing", **more: object) -> str:
    return json.dumps({"file_name": name, "text": text, **more})


def other_suffix(folder: Path) -> None:
    picture(folder).with_suffix(".caption").write_text("a thing")


def words_as_picture(folder: Path) -> None:
    caption(folder, b"a thing")
    (folder / "a.png").write_text("I am a picture")


def turned(folder: Path) -> None:
    caption(folder, b"a thing")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 64)).save(folder / "a.png", exif=exif)


def deep(folder: Path) -> None:
    caption(folder, b"a thing")
    Image.new("I;16", (64, 64)).save(folder / "a.png")


DATA_SETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing in it": (lambda folder: None, "expected"),
    "no caption": (lambda folder: [picture(folder), None][1], "neither captions nor class words"),
    "an empty caption": (lambda folder: caption(folder, b""), "found an empty first line"),
    "a caption of blanks": (lambda folder: caption(folder, b" \n x"), "found an empty first line"),
    "a caption in Latin-1": (
        lambda folder: caption(folder, b"caf\xe9"),
        "expected a text in UTF-8",
    ),
    "a caption in UTF-16": (
        lambda folder: caption(folder, "a thing".encode("utf-16")),
        "expected a text in UTF-8",
    ),
    "another ending of captions": (other_suffix, "found no .txt but a .caption file beside a.png"),
    "a picture cut short": (cut_off, "expected an image that can be decoded whole"),
    "words that are called a picture": (words_as_picture, "found bytes of no known format"),
    "a picture on its side": (turned, "found pixels that an EXIF note says to turn"),
    "a picture of 16 bits": (deep, "found more than 8 bits in one channel"),
    "a line that is no JSON": (lambda folder: described(folder, "{"), "found no JSON ("),
    "a line that is a list": (lambda folder: described(folder, "[1]"), "expected a key file_name"),
    "a line of another folder": (
        lambda folder: described(folder, row("../../etc/passwd")),
        "found '../../etc/passwd', where there is no image",
    ),
    "a line with a whole path": (
        lambda folder: described(folder, row("/etc/passwd")),
        "found '/etc/passwd', where there is no image",
    ),
    "a line of no picture": (
        lambda folder: described(folder, row("b.png")),
        "found 'b.png', where there is no image",
    ),
    "a line without text": (
        lambda folder: described(folder, '{"file_name": "a.png"}'),
        "expected a key text with the caption",
    ),
    "a text that is a number": (
        lambda folder: described(folder, row("a.png", 5)),
        "found text 5; expected a key text with the caption",
    ),
    "repeats of nothing": (
        lambda folder: described(folder, row("a.png", num_repeats=0)),
        "expected a whole number from 1",
    ),
    "JSON without end": (lambda folder: described(folder, "[" * 90_000), "found no JSON ("),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_that_cannot_be_trained_on(tmp_path: Path, name: str) -> None:
    make, sentence = DATA_SETS[name]
    make(tmp_path)
    data = replace(DATA, dir=str(tmp_path), num_repeats=1, resolution=(64, 64), min_bucket_reso=64)
    with pytest.raises(OptbenchError) as caught:
        read_dataset(data, pixels_per_latent=8)
    assert sentence in str(caught.value)


# Bases and LoRA files: what the file holds.


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


BASES: dict[str, tuple[str, bytes | None, str]] = {
    "absent": ("a.safetensors", None, "where there is none; expected a folder in diffusers layout"),
    "empty": ("a.safetensors", b"", "an empty file: copy or download it again"),
    "words": ("a.safetensors", b"I am a checkpoint, honestly", "no safetensors file"),
    "cut short": (
        "a.safetensors",
        header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "it was cut short",
    ),
    "nested": ("a.safetensors", header(b"[" * 90_000), "no safetensors file"),
    "without end": (
        "a.safetensors",
        header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'),
        "no safetensors file",
    ),
    "another kind of file": ("a.zip", b"PK", "whose ending is none known here"),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_is_none(tmp_path: Path, name: str) -> None:
    file, content, sentence = BASES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    problems = check_base(base_options("sd15", tmp_path / file))
    assert sentence in describe(problems)


def lora(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> Path:
        tensors = random_tensors()
        change(tensors)  # type: ignore[arg-type]
        return write_lora(path, tensors)

    return write


def spoiled(tensors: dict[str, object]) -> None:
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"][0, 0] = float("nan")  # type: ignore[index]


def cut_lora(path: Path) -> None:
    write_lora(path)
    path.write_bytes(path.read_bytes()[:-100])


KEY = "lora_te_text_model_encoder_layers_0_mlp_fc1"
LORAS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "expected a whole safetensors file"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04."), "expected a whole safetensors file"),
    "nested": (lambda path: path.write_bytes(header(b"[" * 90_000)), "whole safetensors file"),
    "cut short": (cut_lora, "a file that ends inside"),
    "NaN": (lora(spoiled), f"NaN or infinity in 1 of 12 tensors: {KEY}.lora_up.weight"),
    "half a layer": (lora(lambda one: one.pop(f"{KEY}.lora_up.weight")), "without its lora_up"),
    "an alpha alone": (
        lora(lambda one: one.setdefault("lora_te_x.alpha", torch.tensor(1.0))),
        "an alpha without its layer",
    ),
    "LoHa": (
        lora(lambda one: one.setdefault("lora_te_x.hada_w1_a", torch.tensor(1.0))),
        "found LoHa, a form of adapter",
    ),
    "no LoRA at all": (lora(lambda one: one.clear()), "no LoRA layer at all"),
    "a folder": (lambda path: path.mkdir(), "a folder; expected one LoRA file"),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_that_is_none(tmp_path: Path, name: str) -> None:
    write, sentence = LORAS[name]
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(OptbenchError) as caught:
        initial_weights_of(replace(PLAIN_NETWORK, weights=str(path)))
    assert sentence in str(caught.value)


# Files of our own, as a disk or a stranger may have left them.

OWN: dict[str, tuple[Callable[[Path], object], bytes, str]] = {
    "JSON of a list": (files.read_json, b"[]", "found a JSON list; expected a JSON object"),
    "half a JSON": (files.read_json, b'{"a": 1', "found JSONDecodeError"),
    "JSON without end": (files.read_json, b"[" * 90_000, "expected a JSON object"),
    "JSON that was changed": (
        files.read_json,
        b'{"a": 2, "sha256": "' + b"0" * 64 + b'"}',
        "found other content than was written",
    ),
    "a record that is none": (files.read_rows, b"[1]\n{}\n", "found no object in line 1"),
    "a record that was changed": (
        files.read_rows,
        b'{"epoch":1,"crc32":"00000000"}\n',
        "found another record than was written in line 1",
    ),
    "half a character": (
        files.read_rows,
        b'{"a": "\\ud800"}\n',
        "found half a character in line 1",
    ),
    "a config with half a character": (
        lambda path: read_config(RunDir(path.parent)),
        b'a: "\\ud800"\n',
        "found half a character in a text",
    ),
    "a config with an alias": (
        lambda path: read_config(RunDir(path.parent)),
        b"a: &a 1\nb: *a\n",
        "an alias (*name)",
    ),
    "a config that builds objects": (
        lambda path: read_config(RunDir(path.parent)),
        b"a: !!python/object/apply:os.system [echo intruded]\n",
        "could not determine a constructor",
    ),
    "a state that is none": (read_state, b"x" * 99, "found 99 bytes that are not what was written"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_file_of_our_own_that_is_not_what_was_written(tmp_path: Path, name: str) -> None:
    read, content, sentence = OWN[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(OptbenchError) as caught:
        read(path)
    assert sentence in str(caught.value)
    problems: tuple[Problem, ...] = caught.value.problems
    assert all(problem.fix for problem in problems)


def test_the_table_is_long_enough() -> None:
    tables = (WRONG_VALUES, WRONG_TYPES, WRONG_COMMANDS, RECIPES, DATA_SETS, BASES, LORAS, OWN)
    assert sum(map(len, tables)) >= 100
