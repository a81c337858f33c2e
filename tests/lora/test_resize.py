"""A LoRA file becomes a smaller one: energy, scale, sizes, metadata, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from optbench.errors import ConfigError, DamagedFileError, OptbenchError
from optbench.lora.resize.resize import ModuleRecord, ResizeSpec, write_resized
from optbench.lora.resize.rules import SizeRule
from tests.builders.lora_files import (
    CONV,
    LAYERS,
    LINEAR,
    POINT,
    deltas,
    random_tensors,
    read_file,
    write_lora,
)

DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resize(source: Path, target: Path, **changes: Any) -> dict[str, ModuleRecord]:
    records = write_resized([source], target, wanted(name=target.stem, **changes))
    return {record.module: record for record in records}


def wanted(
    *,
    name: str = "small",
    method: Any = "none",
    param: float | None = None,
    new_dim: int | None = None,
    new_conv_dim: int | None = None,
    compat: Any = "v0.11",
    save_precision: Any = "float",
    weights: tuple[float, ...] | None = None,
) -> ResizeSpec:
    rule = SizeRule(method=method, param=param, dim=new_dim, conv_dim=new_conv_dim, compat=compat)
    return ResizeSpec(name=name, rule=rule, precision=save_precision, weights=weights)


def refusal(source: Path, target: Path, **changes: Any) -> str:
    before = source.read_bytes()
    with pytest.raises(OptbenchError) as caught:
        resize(source, target, **{"new_dim": 2, **changes})
    assert source.read_bytes() == before
    assert not target.exists()
    return str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dim=st.integers(1, 10),
    new_dim=st.integers(1, 12),
    new_conv_dim=st.none() | st.integers(1, 12),
    alpha=st.none() | st.sampled_from([0.5, 1.0, 4.0, 32.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_energy_scale_and_idempotence_of_any_lora(
    tmp_path: Path,
    dim: int,
    new_dim: int,
    new_conv_dim: int | None,
    alpha: float | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    source = write_lora(tmp_path / "a", dim=dim, alpha=alpha, dtype=dtype, seed=seed)
    sizes: dict[str, Any] = {"new_dim": new_dim, "new_conv_dim": new_conv_dim}
    records = resize(source, tmp_path / "b", **sizes)
    whole, found = deltas(source), deltas(tmp_path / "b")
    tensors = read_file(tmp_path / "b")[0]
    assert found.keys() == whole.keys() == records.keys()
    for name, record in records.items():
        size = float(torch.linalg.matrix_norm(whole[name]))
        kept = float(torch.linalg.matrix_norm(found[name]))
        lost = float(torch.linalg.matrix_norm(whole[name] - found[name]))
        assert kept / size == pytest.approx(record.retained_fro, rel=1e-5)
        # Squares, because the root of a difference of nearly equal ones is mostly rounding.
        assert lost**2 == pytest.approx(size**2 - kept**2, abs=4e-6 * size**2)
        assert kept <= size * (1 + 1e-5)
        new_scale = float(tensors[f"{name}.alpha"]) / record.new_dim
        assert new_scale == pytest.approx((alpha if alpha is not None else dim) / dim, rel=1e-6)
        is_conv = name in (POINT, CONV)
        assert record.new_dim == ((new_conv_dim or new_dim) if is_conv else new_dim)
        if record.new_dim >= dim:
            assert lost <= 1e-5 * size
    resize(tmp_path / "b", tmp_path / "c", **sizes)
    for name, delta in deltas(tmp_path / "c").items():
        torch.testing.assert_close(delta, found[name], rtol=0, atol=1e-5 * float(delta.norm()))


@pytest.mark.parametrize("precision", ["float", "fp16", "bf16"])
def test_sizes_follow_the_dims_to_the_byte(tmp_path: Path, precision: str) -> None:
    source = write_lora(tmp_path / "a")
    itemsize = DTYPES[precision].itemsize
    for new_dim in (1, 2, 5):
        target = tmp_path / f"{new_dim}"
        resize(source, target, new_dim=new_dim, save_precision=precision)
        blob = target.read_bytes()
        header = 8 + int.from_bytes(blob[:8], "little")
        numbers = sum(
            1 + new_dim * (outputs + math.prod(inputs)) for outputs, inputs in LAYERS.values()
        )
        assert len(blob) == header + numbers * itemsize
        assert all(one.dtype == DTYPES[precision] for one in read_file(target)[0].values())


def test_dynamic_dims_keep_what_they_promise(tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a", dtype=torch.float16)
    for name, record in resize(source, tmp_path / "b", method="sv_fro", param=0.9).items():
        assert record.retained_fro >= 0.9
        kept = torch.linalg.matrix_norm(deltas(tmp_path / "b")[name])
        whole = torch.linalg.matrix_norm(deltas(source)[name])
        assert float(kept / whole) == pytest.approx(record.retained_fro, rel=1e-5)
    for record in resize(source, tmp_path / "b", method="sv_cumulative", param=0.8).values():
        assert record.retained_sum >= 0.8
    ratio = resize(source, tmp_path / "b", method="sv_ratio", param=5.0)
    for record in ratio.values():
        values = record.singular_values
        assert [value > values[0] / 5 for value in values].count(True) == record.new_dim
    again = resize(tmp_path / "b", tmp_path / "c", method="sv_ratio", param=5.0)
    assert {name: one.new_dim for name, one in again.items()} == {
        name: one.new_dim for name, one in ratio.items()
    }


def test_a_limit_holds_for_dynamic_methods_too(tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a")
    found = resize(source, tmp_path / "b", method="sv_ratio", param=1e6, new_dim=3, new_conv_dim=2)
    assert {name: one.new_dim for name, one in found.items()} == {
        name: 2 if name in (POINT, CONV) else 3 for name in LAYERS
    }


def test_an_untrained_layer_keeps_one_direction_of_nothing(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors[f"{LINEAR}.lora_up.weight"].zero_()
    source = write_lora(tmp_path / "a", tensors)
    record = resize(source, tmp_path / "b", new_dim=4)[LINEAR]
    assert (record.new_dim, record.retained_sum, record.retained_fro) == (1, 1.0, 1.0)
    assert not deltas(tmp_path / "b")[LINEAR].any()


def test_the_same_twice_is_the_same_file(tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a", metadata={"x": "1", "y": "2"})
    for folder in ("1", "2"):
        resize(source, tmp_path / folder / "b", method="sv_ratio", param=4.0)
    assert (tmp_path / "1" / "b").read_bytes() == (tmp_path / "2" / "b").read_bytes()


# Metadata


METADATA = {
    "ss_network_dim": "8",
    "ss_network_alpha": "4.0",
    "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4.0", "preset": "full"}',
    "ss_output_name": "big",
    "ss_training_comment": "a person's words",
    "ss_tag_frequency": '{"3_girl": {"1girl": 24}}',
    "ss_base_model_version": "sd_v1",
    "sshs_model_hash": "0" * 64,
    "sshs_legacy_hash": "0" * 8,
    "modelspec.title": "big",
}


def metadata_of(tmp_path: Path, metadata: dict[str, str] | None, **changes: Any) -> dict[str, str]:
    source = write_lora(tmp_path / "a", metadata=metadata)
    resize(source, tmp_path / "small.safetensors", **changes)
    return read_file(tmp_path / "small.safetensors")[1]


def test_metadata_of_fixed_dims(tmp_path: Path) -> None:
    found = metadata_of(tmp_path, METADATA, new_dim=2, new_conv_dim=1)
    assert found["ss_network_dim"] == "2"
    assert found["ss_network_alpha"] == "1"
    assert found["ss_training_comment"] == (
        "dimension is resized from 8 to 2 (conv: 1); a person's words"
    )
    assert json.loads(found["ss_network_args"]) == {
        "conv_dim": "1",
        "conv_alpha": "0.5",
        "preset": "full",
    }
    assert found["ss_output_name"] == "small"
    for key in ("ss_tag_frequency", "modelspec.title", "ss_base_model_version"):
        assert found[key] == METADATA[key]


def test_metadata_of_dynamic_dims(tmp_path: Path) -> None:
    found = metadata_of(tmp_path, METADATA, method="sv_ratio", param=5.0, compat="v0.10")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert found["ss_training_comment"].startswith("Dynamic resize with sv_ratio: 5 from 8; ")
    said = json.loads(found["optbench.resize"])
    assert said["compat"] == "v0.10"
    assert (said["method"], said["param"]) == ("sv_ratio", 5.0)


def test_hashes_are_those_of_the_new_tensors(tmp_path: Path) -> None:
    found = metadata_of(tmp_path, METADATA, new_dim=2)
    blob = (tmp_path / "small.safetensors").read_bytes()
    body = blob[8 + int.from_bytes(blob[:8], "little") :]
    assert found["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert found["sshs_legacy_hash"] != METADATA["sshs_legacy_hash"]


@pytest.mark.parametrize(
    ("width", "version"), [(768, "sd_v1"), (1024, "sd_v2"), (2048, "sdxl_base_v1-0"), (5, None)]
)
def test_a_file_without_metadata_gets_its_family_from_its_keys(
    tmp_path: Path, width: int, version: str | None
) -> None:
    layers = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (9, (width,))}
    source = write_lora(tmp_path / "a", layers=layers)
    resize(source, tmp_path / "b", new_dim=2)
    found = read_file(tmp_path / "b")[1]
    assert found.get("ss_base_model_version") == version
    assert "ss_training_comment" in found


def test_other_tensors_are_carried_over(tmp_path: Path) -> None:
    extra = torch.arange(6.0).view(2, 3)
    source = write_lora(tmp_path / "a", {**random_tensors(), "bundle_emb.word.clip_l": extra})
    resize(source, tmp_path / "b", new_dim=2)
    assert torch.equal(read_file(tmp_path / "b")[0]["bundle_emb.word.clip_l"], extra)


REAL_NAMES = {
    "sd15": [
        "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_mid_block_resnets_1_time_emb_proj",
        "lora_unet_up_blocks_3_attentions_2_proj_out",
    ],
    "sd2": [
        "lora_te_text_model_encoder_layers_22_mlp_fc2",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_up_blocks_2_upsamplers_0_conv",
    ],
    "sdxl": [
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1",
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v",
        "lora_unet_middle_block_1_proj_in",
        "lora_unet_output_blocks_5_2_conv",
    ],
}


@pytest.mark.parametrize("family", REAL_NAMES)
@pytest.mark.parametrize("alpha", [None, 4.0])
def test_names_of_every_family_come_back_as_they_were(
    tmp_path: Path, family: str, alpha: float | None
) -> None:
    shapes: list[tuple[int, tuple[int, ...]]] = [(20, (12,)), (12, (16, 1, 1)), (24, (6, 3, 3))]
    layers = {name: shapes[index % 3] for index, name in enumerate(REAL_NAMES[family])}
    source = write_lora(tmp_path / "a", layers=layers, alpha=alpha, dtype=torch.bfloat16)
    records = resize(source, tmp_path / "b", new_dim=2, save_precision="bf16")
    assert list(records) == sorted(layers)
    found = read_file(tmp_path / "b")[0]
    tails = ("alpha", "lora_down.weight", "lora_up.weight")
    assert found.keys() == {f"{name}.{tail}" for name in layers for tail in tails}
    for name, (outputs, inputs) in layers.items():
        assert tuple(found[f"{name}.lora_down.weight"].shape) == (2, *inputs)
        ones = [1] * (len(inputs) - 1)
        assert tuple(found[f"{name}.lora_up.weight"].shape) == (outputs, 2, *ones)


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    tensors = random_tensors(dtype=torch.float16)
    tensors[f"{CONV}.lora_down.weight"][3, 1, 0, 2] = bad
    tensors[f"{LINEAR}.alpha"].fill_(bad)
    message = refusal(write_lora(tmp_path / "a", tensors), tmp_path / "b")
    assert f"{CONV}.lora_down.weight" in message
    assert f"{LINEAR}.alpha" in message
    assert "2 of 12 tensors" in message


def test_a_file_cut_short_is_refused_by_the_tensor_it_ends_in(tmp_path: Path) -> None:
    blob = write_lora(tmp_path / "whole").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    start = len(blob) - max(one["data_offsets"][1] for one in header.values())
    for name, entry in header.items():
        cut = tmp_path / "cut"
        cut.write_bytes(blob[: start + entry["data_offsets"][1] - 1])
        assert f"ends inside {name} (" in refusal(cut, tmp_path / "b")
    cut.write_bytes(blob[:100])
    assert "ends inside its header" in refusal(cut, tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 40, b"PK\x03\x04" + bytes(200)])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert "expected a whole safetensors file" in refusal(tmp_path / "a", tmp_path / "b")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DamagedFileError):
            resize(path, tmp_path / "b", new_dim=2)


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("x.dora_scale", "DoRA"),
        ("x.hada_w1_a", "LoHa"),
        ("x.lokr_w1", "LoKr"),
        ("x.lora_mid.weight", "Tucker"),
        ("unet.x.lora_A.weight", "PEFT"),
    ],
)
def test_other_forms_of_adapter_are_refused_in_words(tmp_path: Path, key: str, form: str) -> None:
    tensors = {**random_tensors(), key: torch.ones(3)}
    message = refusal(write_lora(tmp_path / "a", tensors), tmp_path / "b")
    assert form in message
    assert key in message


def test_everything_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors[f"{LINEAR}.lora_up.weight"], tensors[f"{POINT}.lora_down.weight"]
    tensors[f"{CONV}.lora_up.weight"] = torch.ones(24, 7, 1, 1)
    tensors[f"{CONV}.alpha"] = torch.ones(2)
    tensors["lonely.alpha"] = torch.tensor(1.0)
    with pytest.raises(ConfigError) as caught:
        resize(write_lora(tmp_path / "a", tensors), tmp_path / "b", new_dim=2)
    assert len(caught.value.problems) == 5
    for name in (LINEAR, POINT, CONV, "lonely", "more than one number"):
        assert name in str(caught.value)


def test_a_file_without_any_layer_is_refused(tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a", {"model.weight": torch.ones(3)})
    assert "no LoRA layer at all" in refusal(source, tmp_path / "b")


def test_what_does_not_fit_into_fp16_is_refused_by_name(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors[f"{LINEAR}.lora_up.weight"] *= 1e6
    source = write_lora(tmp_path / "a", tensors)
    message = refusal(source, tmp_path / "b", save_precision="fp16")
    assert f"{LINEAR}.lora_up.weight" in message
    assert "save_precision=bf16" in message
    resize(source, tmp_path / "b", new_dim=2, save_precision="bf16")
