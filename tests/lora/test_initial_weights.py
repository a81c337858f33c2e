"""A LoRA file to continue from: what is read of it, and everything it is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from optbench.config.compose import compose_runs
from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lora import initial_weights
from optbench.lora.initial_weights import (
    InitialWeights,
    initial_weights_of,
    is_rounded,
    judge_initial_weights,
)
from optbench.schema import NetworkOptions
from tests.builders.lora_files import CONV, LINEAR, POINT, random_tensors, write_lora
from tests.builders.small_training import NETWORK

SIZES: dict[str, Any] = {"dim": 8, "alpha": 4.0, "conv_dim": 8, "conv_alpha": 4.0}
UNET_ONLY = {k: v for k, v in random_tensors().items() if "lora_unet" in k}


def options_for(path: Path, **changes: Any) -> NetworkOptions:
    return replace(NETWORK, **{**SIZES, "weights": str(path), **changes})


def check_start(options: NetworkOptions) -> list[Problem]:
    return judge_initial_weights(options)[1]


def problem_of(options: NetworkOptions) -> Problem:
    (problem,) = check_start(options)
    return problem


def read(path: Path) -> InitialWeights:
    start = initial_weights_of(replace(NETWORK, weights=str(path)))
    assert start is not None
    return start


def test_no_file_is_a_fresh_lora() -> None:
    assert initial_weights_of(NETWORK) is None
    assert check_start(NETWORK) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_that_fits_is_read_with_every_layers_size(tmp_path: Path, dtype: Any) -> None:
    path = write_lora(tmp_path / "a.safetensors", dtype=dtype, metadata={"ss_output_name": "mine"})
    assert check_start(options_for(path)) == []
    start = read(path)
    assert start.name == "mine"
    assert {size.dim for size in start.layers.values()} == {8}
    assert {size.alpha for size in start.layers.values()} == {4.0}
    assert [name for name, size in start.layers.items() if size.is_window] == [CONV]


def test_a_missing_alpha_is_the_dim(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", alpha=None)
    assert read(path).layers[LINEAR].alpha == 8
    assert check_start(options_for(path, alpha=8.0, conv_alpha=8.0)) == []
    problems = check_start(options_for(path))
    assert [problem.where for problem in problems] == ["network.dim", "network.conv_dim"]
    assert "alpha = dim" in problems[0].found
    assert "network.dim=8 network.alpha=8" in problems[0].fix


def test_another_size_is_refused_with_both_and_what_to_type(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "big.safetensors")
    problem = problem_of(options_for(path, dim=16, alpha=8.0))
    assert "network.dim=16 network.alpha=8" in problem.found
    assert "big.safetensors dim 8 alpha 4" in problem.found
    assert "network.dim=8 network.alpha=4" in problem.fix
    assert "network.dim_from_weights=true" in problem.fix
    problem = problem_of(options_for(path, conv_dim=None, conv_alpha=None))
    assert "network.conv_dim=8 network.conv_alpha=4" in problem.fix


def test_convolutions_asked_for_and_not_in_the_file_are_refused(tmp_path: Path) -> None:
    tensors = {key: one for key, one in random_tensors().items() if not key.startswith(CONV)}
    path = write_lora(tmp_path / "a.safetensors", tensors)
    assert "network.conv_dim=null" in problem_of(options_for(path)).fix


def test_layers_of_several_sizes_have_one_way_out(tmp_path: Path) -> None:
    other = random_tensors(dim=2, alpha=1.0)
    tensors = {key: other[key] if POINT in key else one for key, one in random_tensors().items()}
    path = write_lora(tmp_path / "a.safetensors", tensors)
    problem = problem_of(options_for(path))
    assert "dim 8 alpha 4, dim 2 alpha 1" in problem.found
    assert problem.fix == "write network.dim_from_weights=true"
    usual = options_for(path, dim=16, conv_dim=None, conv_alpha=None, alpha=8.0)
    taken = initial_weights.sized_by_file(replace(usual, dim_from_weights=True), read(path))
    assert (taken.dim, taken.alpha, taken.conv_dim, taken.conv_alpha) == (8, 4.0, 8, 4.0)


def test_dim_from_weights_needs_weights_and_no_size_of_ones_own(tmp_path: Path) -> None:
    assert problem_of(replace(NETWORK, dim_from_weights=True)).where == "network.dim_from_weights"
    path = write_lora(tmp_path / "a.safetensors")
    usual = {"dim": 16, "alpha": 8.0, "conv_dim": None, "conv_alpha": None, "name": "lora"}
    asked = options_for(path, **usual, dim_from_weights=True)
    assert check_start(asked) == []
    problem = problem_of(replace(asked, dim=32, alpha=16.0))
    assert problem.where == "network.dim"
    assert problem.found.startswith("32 while")
    (problem,) = check_start(replace(asked, block_dims=(4,) * 25))
    assert problem.where == "network.block_dims"
    (problem,) = check_start(replace(asked, rslora=True))
    assert problem.where == "network.rslora"
    assert (
        check_start(initial_weights.sized_by_file(asked, read(path))) == []
    )  # as a run's config.yaml says it


def test_rslora_is_in_a_files_alphas_and_dora_in_no_file(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", dim=4, alpha=4.0)
    sizes = {"dim": 4, "alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0}
    assert check_start(options_for(path, **sizes, rslora=True)) == []
    problem = check_start(options_for(path, **sizes))[0]
    assert "network.dim=4 network.alpha=4" in problem.fix
    (problem,) = check_start(options_for(path, **{**sizes, "dim": 8}, rslora=True))
    assert "network.rslora=true" in problem.found
    assert problem.fix == "write network.dim_from_weights=true network.rslora=false"
    assert problem_of(options_for(path, **sizes, dora=True)).where == "network.dora"


def test_sizes_by_block_are_left_to_the_loaded_base(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors")
    assert check_start(options_for(path, dim=4, block_dims=(8,) * 25)) == []


def test_a_part_without_weights_is_refused_and_a_part_left_out_is_said(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "unet.safetensors", UNET_ONLY)
    problem = problem_of(options_for(path))
    assert problem.where == "network.train_text_encoder"
    alone = options_for(path, train_text_encoder=False)
    assert check_start(alone) == []
    assert len(initial_weights.initial_weights_notices(alone, read(path))) == 1
    whole = write_lora(tmp_path / "whole.safetensors")
    asked = options_for(whole, train_text_encoder=False)
    assert check_start(asked) == []
    assert list(read(whole).of_parts(asked)) == [
        name for name in read(whole).layers if "unet" in name
    ]
    (_, lost) = initial_weights.initial_weights_notices(asked, read(whole))
    assert "1 layers of the text encoder" in lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_tensor(
    tmp_path: Path, dtype: Any, value: float
) -> None:
    tensors = {key: one.float() for key, one in random_tensors().items()}
    tensors[f"{POINT}.lora_up.weight"][3, 1] = value
    cast = {key: one.to(dtype) for key, one in tensors.items()}
    path = write_lora(tmp_path / "a.safetensors", cast)
    problem = problem_of(options_for(path))
    assert f"1 of 12 tensors: {POINT}.lora_up.weight" in problem.found
    assert problem.where.startswith("network.weights")
    with pytest.raises(DamagedFileError):
        read(path)


@pytest.mark.parametrize(
    ("key", "form"),
    [
        (f"{LINEAR}.dora_scale", "DoRA"),
        (f"{LINEAR}.hada_w1_a", "LoHa"),
        (f"{LINEAR}.lokr_w1", "LoKr"),
        (f"{LINEAR}.lora_mid.weight", "Tucker"),
        ("emb_params", "neither unet nor text encoder"),
        ("lora_transformer_x.lora_up.weight", "without its lora_down"),
    ],
)
def test_other_adapters_are_refused_in_words(tmp_path: Path, key: str, form: str) -> None:
    path = write_lora(tmp_path / "a.safetensors", {**random_tensors(), key: torch.ones(2, 2)})
    assert form in problem_of(options_for(path)).found


def test_dtypes_a_network_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", dtype=torch.float64)
    assert "another dtype than F32" in problem_of(options_for(path)).found


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert problem_of(options_for(tmp_path / "absent")).where == "network.weights"
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(write_lora(tmp_path / "a.safetensors").read_bytes()[:-100])
    assert "ends inside" in problem_of(options_for(torn)).found
    (tmp_path / "junk").write_bytes(b"no LoRA at all")
    assert check_start(options_for(tmp_path / "junk"))
    run = tmp_path / "run" / "lora"
    run.mkdir(parents=True)
    write_lora(run / "mine-000001.safetensors")
    last = write_lora(run / "mine.safetensors")
    assert str(last) in problem_of(options_for(run.parent)).fix


def test_the_fingerprint_is_the_tensors_and_not_the_files(tmp_path: Path) -> None:
    one = read(write_lora(tmp_path / "a.safetensors", metadata={"a": "b"}))
    moved = read(write_lora(tmp_path / "b.safetensors", metadata={"c": "d"}))
    assert one.fingerprint == moved.fingerprint
    assert one.fingerprint != read(write_lora(tmp_path / "c.safetensors", seed=1)).fingerprint
    shrunk = {
        key: value.reshape(1) if key.endswith("alpha") else value
        for key, value in random_tensors().items()
    }
    assert one.fingerprint != read(write_lora(tmp_path / "d.safetensors", shrunk)).fingerprint


def test_the_hash_is_the_one_kohyas_trainer_writes(tmp_path: Path) -> None:
    from optbench.lora.file import read_lora
    from optbench.lora.save import save_lora

    path = tmp_path / "a.safetensors"
    save_lora(path, random_tensors(), precision="fp16", metadata={"ss_seed": "1"})
    said = initial_weights.initial_weights_metadata(read(path))
    model_hash = json.loads(said[initial_weights.METADATA_KEY])["sshs_model_hash"]
    assert model_hash == read_lora(path)[1]["sshs_model_hash"]
    assert initial_weights.initial_weights_metadata(None) == {}


def test_runs_of_one_command_read_a_file_once(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors")
    read_files: initial_weights.ReadWeights = {}
    first = initial_weights_of(options_for(path), read_files)
    path.unlink()
    assert initial_weights_of(options_for(path, dim=2), read_files) is first
    assert judge_initial_weights(options_for(path), read_files) == (first, [])


NUMBERS = st.floats(min_value=0.0625, max_value=200, width=16)
KINDS = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)


@given(alpha=NUMBERS, kind=KINDS)
def test_alphas_are_read_exactly_and_known_again_after_rounding(
    tmp_path_factory: Any, alpha: float, kind: torch.dtype
) -> None:
    tensors = {key: one.to(kind) for key, one in random_tensors(alpha=alpha).items()}
    path = tmp_path_factory.mktemp("one") / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    size = read(path).layers[LINEAR]
    assert size.alpha == float(tensors[f"{LINEAR}.alpha"].float())
    assert is_rounded(alpha, size)
    assert not is_rounded(alpha * 2, size)
    assert not is_rounded(alpha / 2, size)


@pytest.mark.usefixtures("fake_assets")
def test_a_run_is_named_by_the_tensors_it_continues(tmp_path: Path) -> None:
    def name_of(*arguments: str) -> str:
        (run,) = compose_runs(["network=lora", *arguments]).runs
        return run.name

    tensors = {key: one for key, one in random_tensors().items() if not key.startswith(CONV)}
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(first, tensors)
    write_lora(second, tensors, metadata={"other": "words"})
    sizes = ["network.dim=8", "network.alpha=4"]
    named = name_of(f"network.weights={first}", *sizes)
    assert "-continues_" in named
    assert named == name_of(f"network.weights={second}", *sizes)
    assert named == name_of(f"network.weights={first}", "network.dim_from_weights=true")
    assert named != name_of(*sizes)
    write_lora(second, {key: 2 * one for key, one in tensors.items() if "alpha" not in key})
    assert named != name_of(f"network.weights={second}", "network.dim_from_weights=true")


@pytest.mark.usefixtures("fake_assets")
def test_wrong_files_are_told_beside_everything_else(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError) as caught:
        compose_runs([f"network.weights={path}", "train.epochs=0", "network.dim=0"])
    where = {problem.where for problem in caught.value.problems}
    assert {"train.epochs", "network.dim"} <= where


def test_an_integer_alpha_is_an_alpha_and_an_embedding_is_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(dim=8, alpha=4.0)
    whole = {
        key: tensor.long() if key.endswith(".alpha") else tensor for key, tensor in tensors.items()
    }
    embedding = {"bundle_emb.mia.string_to_token.*": torch.tensor(265)}
    path = write_lora(tmp_path / "a.safetensors", {**whole, **embedding})
    initial = initial_weights_of(options_for(path))
    assert initial is not None
    assert {size.alpha for size in initial.layers.values()} == {4.0}
    assert all(is_rounded(4.0, size) for size in initial.layers.values())
    assert not any(is_rounded(4.5, size) for size in initial.layers.values())
    (notice,) = initial.notices
    assert "the embedding mia in it is left out" in notice
