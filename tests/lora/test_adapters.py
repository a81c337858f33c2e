"""Adapter files of every form and naming against formulas written out with loops."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from optbench.errors import ConfigError, DamagedFileError
from optbench.lora.adapters.apply import AdapterFile, applied, check_adapters, misfits
from optbench.lora.layer import supported
from optbench.lora.network import build_network
from optbench.models import sdxl
from optbench.records import LoraTarget
from tests.builders.lora_files import write_lora
from tests.builders.small_training import NETWORK

LINEAR, CONV = "lora_unet_down_attn_to_q", "lora_unet_down_resnets_conv1"
PATHS = {LINEAR: "unet.down.attn.to_q", CONV: "unet.down.resnets.conv1"}
Tensors = dict[str, Tensor]


def targets() -> tuple[LoraTarget, ...]:
    torch.manual_seed(3)
    modules = {LINEAR: nn.Linear(6, 4), CONV: nn.Conv2d(6, 4, 3)}
    return tuple(
        LoraTarget(
            name=name, module=module, part="unet", needs_conv_dim=False, diffusers_path=PATHS[name]
        )
        for name, module in modules.items()
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def keyed(name: str, **parts: Tensor) -> Tensors:
    return {f"{name}.{part.replace('__', '.')}": tensor for part, tensor in parts.items()}


def rebuilt(core: Tensor, left_OR: Tensor, right_RI: Tensor) -> Tensor:
    """Return sum over r and s of left[o, r] core[r, s, k, l] right[s, i], by loops."""
    made = torch.zeros(len(left_OR), right_RI.shape[1], *core.shape[2:])
    for r in range(core.shape[0]):
        for s in range(core.shape[1]):
            made += left_OR[:, r, None, None, None] * core[r, s] * right_RI[s][:, None, None]
    return made


def lora() -> tuple[Tensors, Tensor]:
    up, down = draw(4, 2), draw(2, 6)
    tensors = keyed(LINEAR, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(3.0))
    return tensors, (up @ down) * 1.5


def lora_without_alpha() -> tuple[Tensors, Tensor]:
    up, down = draw(4, 2, 1, 1), draw(2, 6, 3, 3)
    change = sum(up[:, r] * down[r][None].flatten(1) for r in range(2)).view(4, 6, 3, 3)
    return keyed(CONV, lora_up__weight=up, lora_down__weight=down), change


def lora_with_a_core() -> tuple[Tensors, Tensor]:
    up, core, down = draw(4, 2, 1, 1), draw(2, 2, 3, 3), draw(2, 6, 1, 1)
    tensors = keyed(CONV, lora_up__weight=up, lora_mid__weight=core, lora_down__weight=down)
    return tensors | keyed(CONV, alpha=torch.tensor(1.0)), rebuilt(
        core, up.flatten(1), down.flatten(1)
    ) / 2


def loha() -> tuple[Tensors, Tensor]:
    one, two, three, four = draw(4, 2), draw(2, 54), draw(4, 2, seed=9), draw(2, 54, seed=9)
    tensors = keyed(CONV, hada_w1_a=one, hada_w1_b=two, hada_w2_a=three, hada_w2_b=four)
    change = ((one @ two) * (three @ four) * 0.5).view(4, 6, 3, 3)
    return tensors | keyed(CONV, alpha=torch.tensor(1.0)), change


def loha_with_cores() -> tuple[Tensors, Tensor]:
    parts = {
        f"hada_{name}": draw(*shape, seed=number)
        for number, (name, shape) in enumerate(
            {
                "t1": (2, 2, 3, 3), "w1_a": (2, 4), "w1_b": (2, 6),
                "t2": (2, 2, 3, 3), "w2_a": (2, 4), "w2_b": (2, 6),
            }.items()
        )
    }  # fmt: skip
    first, second = (
        rebuilt(parts[f"hada_t{n}"], parts[f"hada_w{n}_a"].T, parts[f"hada_w{n}_b"]) for n in "12"
    )
    return keyed(CONV, **parts), first * second


def lokr() -> tuple[Tensors, Tensor]:
    one, left, right = draw(2, 3), draw(2, 1), draw(1, 18)
    tensors = keyed(CONV, lokr_w1=one, lokr_w2_a=left, lokr_w2_b=right, alpha=torch.tensor(0.5))
    two = (left @ right).view(2, 2, 3, 3)
    change = torch.zeros(4, 6, 3, 3)
    for out in range(4):
        for into in range(6):
            change[out, into] = one[out // 2, into // 2] * two[out % 2, into % 2] * 0.5
    return tensors, change


def lokr_of_whole_factors() -> tuple[Tensors, Tensor]:
    one, two = draw(2, 2), draw(2, 3)
    # Without a dim there is nothing to divide the alpha by, and readers leave it out.
    tensors = keyed(LINEAR, lokr_w1=one, lokr_w2=two, alpha=torch.tensor(7.0))
    return tensors, torch.kron(one, two)


def lokr_with_a_core() -> tuple[Tensors, Tensor]:
    one, core, left, right = draw(2, 3), draw(2, 2, 3, 3), draw(2, 2), draw(2, 2, seed=4)
    tensors = keyed(CONV, lokr_w1=one, lokr_t2=core, lokr_w2_a=left, lokr_w2_b=right)
    return tensors, torch.kron(one.view(2, 3, 1, 1), rebuilt(core, left.T, right))


def peft() -> tuple[Tensors, Tensor]:
    up, down = draw(4, 2), draw(2, 6)
    path = PATHS[LINEAR]
    return {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, up @ down


def old_diffusers() -> tuple[Tensors, Tensor]:
    up, down = draw(4, 2), draw(2, 6)
    start = "unet.down.attn.processor.to_q_lora"
    return {f"{start}.down.weight": down, f"{start}.up.weight": up}, up @ down


def diffusers_with_alpha() -> tuple[Tensors, Tensor]:
    up, down = draw(4, 2), draw(2, 6)
    path = PATHS[LINEAR]
    tensors = {f"{path}.lora.down.weight": down, f"{path}.lora.up.weight": up}
    return tensors | {f"{path}.alpha": torch.tensor(1.0)}, up @ down / 2


FORMS: tuple[Callable[[], tuple[Tensors, Tensor]], ...] = (
    lora,
    lora_without_alpha,
    lora_with_a_core,
    loha,
    loha_with_cores,
    lokr,
    lokr_of_whole_factors,
    lokr_with_a_core,
    peft,
    old_diffusers,
    diffusers_with_alpha,
)


def moved(path: Path, *, strength: float = 1.0) -> dict[str, Tensor]:
    """Return what a file changes each layer's weight by."""
    every = targets()
    before = {target.name: supported(target.module).weight.detach().clone() for target in every}
    with applied(every, [(AdapterFile(path), strength)]):
        after = {target.name: supported(target.module).weight.detach().clone() for target in every}
    for target in every:
        assert torch.equal(supported(target.module).weight, before[target.name])
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_changes_its_layer_as_its_formula_says(
    tmp_path: Path, form: Callable[[], tuple[Tensors, Tensor]]
) -> None:
    tensors, wanted = form()
    path = write_lora(tmp_path / "a.safetensors", tensors)
    check_adapters([path])
    assert misfits(targets(), AdapterFile(path), base="b") == []
    name = LINEAR if wanted.ndim == 2 else CONV
    changes = moved(path, strength=0.5)
    torch.testing.assert_close(changes.pop(name), wanted * 0.5, atol=2e-6, rtol=1e-5)
    assert not any(change.any() for change in changes.values())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", [lora, loha, lokr], ids=lambda form: form.__name__)
def test_learnt_lengths_are_those_of_the_sum_on_the_axis_of_their_shape(
    tmp_path: Path, form: Callable[[], tuple[Tensors, Tensor]], axis: int
) -> None:
    tensors, added = form()
    name = LINEAR if added.ndim == 2 else CONV
    (weight,) = (supported(one.module).weight.detach() for one in targets() if one.name == name)
    shape = [1] * added.ndim
    shape[axis] = added.shape[axis]
    learnt = draw(*shape).abs() + 0.1
    path = write_lora(tmp_path / "a.safetensors", {**tensors, f"{name}.dora_scale": learnt})
    summed = weight + added
    wanted = torch.empty_like(summed)
    for number in range(added.shape[axis]):
        one = summed.select(axis, number)
        length = float(one.square().sum().sqrt())
        wanted.select(axis, number).copy_(one * float(learnt.flatten()[number]) / length)
    for strength in (1.0, 0.25):
        torch.testing.assert_close(
            moved(path, strength=strength)[name], strength * (wanted - weight), atol=1e-5, rtol=1e-4
        )


def test_lengths_in_a_file_of_peft_are_those_of_outputs(tmp_path: Path) -> None:
    tensors, added = peft()
    tensors |= {f"{PATHS[LINEAR]}.lora_magnitude_vector.weight": torch.full((4,), 2.0)}
    path = write_lora(tmp_path / "a.safetensors", tensors)
    assert misfits(targets(), AdapterFile(path), base="b") == []
    weight = supported(targets()[0].module).weight.detach()
    after = weight + moved(path)[LINEAR]
    torch.testing.assert_close(after.norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(
        after / after.norm(dim=1, keepdim=True) * (weight + added).norm(dim=1, keepdim=True),
        weight + added,
    )


@pytest.mark.parametrize(
    ("told", "scale"),
    [
        ({"unet.r": 2, "unet.lora_alpha": 4}, 2.0),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True}, 4 / 2**0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"attn.to_q": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"n.to_q": 1}}, 2.0),
        ({"unet.r": 8, "unet.lora_alpha": 4, "unet.rank_pattern": {"attn.to_q": 2}}, 2.0),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {r".*\.to_[qk]": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"^down.attn.to_q": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q|to_k": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {r"to_q\.": 1}}, 2.0),
        ({"text_encoder.r": 2, "text_encoder.lora_alpha": 4}, 1.0),
    ],
)
def test_scale_of_a_file_of_peft_is_in_its_metadata(
    tmp_path: Path, told: Any, scale: float
) -> None:
    tensors, wanted = peft()
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    path = write_lora(tmp_path / "a.safetensors", tensors, metadata=metadata)
    torch.testing.assert_close(moved(path)[LINEAR], wanted * scale, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"unet.r": 0, "unet.lora_alpha": 4}, "unet: r 0"),
        ({"unet.r": -2, "unet.lora_alpha": 4}, "unet: r -2"),
        ({"unet.r": "2", "unet.lora_alpha": 4}, "unet: r '2'"),
        ({"unet.r": 2}, "unet: no number lora_alpha"),
        ({"unet.lora_alpha": 2}, "unet: no number r"),
        ({"unet.r": 10**400, "unet.lora_alpha": 1}, "unet: r 1000"),
        ({"unet.r": 2, "unet.lora_alpha": float("nan")}, "unet: lora_alpha nan"),
        ({"unet.r": 4, "unet.lora_alpha": 4}, "unet: r is 4, not the layer's dim"),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": [1]}, "alpha_pattern is no"),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 1}}, "no expression"),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+": 1}}, "not tried"),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"a*" * 9: 1}}, "not tried"),
        ([], "no JSON object"),
        ("{", "no JSON ("),
    ],
)
def test_metadata_that_gives_no_scale_is_refused(tmp_path: Path, told: Any, words: str) -> None:
    tensors, _ = peft()
    text = told if isinstance(told, str) else json.dumps(told)
    path = write_lora(tmp_path / "a.safetensors", tensors, metadata={"lora_adapter_metadata": text})
    with pytest.raises(ConfigError) as refusal:
        AdapterFile(path)
    (problem,) = refusal.value.problems
    assert words in problem.found


def test_a_file_of_peft_itself_is_read_and_says_that_its_scale_is_elsewhere(tmp_path: Path) -> None:
    tensors, wanted = peft()
    named = {key.replace("unet.", "base_model.model.unet.", 1): one for key, one in tensors.items()}
    path = write_lora(tmp_path / "a.safetensors", named)
    assert misfits(targets(), AdapterFile(path), base="b") == []
    torch.testing.assert_close(moved(path)[LINEAR], wanted)
    (notice,) = AdapterFile(path).notices
    assert "it is taken as 1" in notice


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("base_model.model.down_blocks.0.attn.to_q", "unet.down_blocks.0.attn.to_q"),
        ("base_model.model.text_model.encoder.x", "text_encoder.text_model.encoder.x"),
        ("base_model.model.text_encoder_2.encoder.x", "text_encoder_2.encoder.x"),
        ("up_blocks.1.attn.to_q", "unet.up_blocks.1.attn.to_q"),
    ],
)
def test_paths_that_begin_inside_of_a_part_are_those_of_the_pipeline(
    tmp_path: Path, path: str, name: str
) -> None:
    tensors = {f"{path}.lora_A.weight": draw(2, 6), f"{path}.lora_B.weight": draw(4, 2)}
    file = AdapterFile(write_lora(tmp_path / "a.safetensors", tensors))
    assert list(file.layers) == [name]


def test_a_bundled_embedding_is_left_out_and_said(tmp_path: Path) -> None:
    tensors, wanted = lora()
    embedding = {
        "bundle_emb.mytoken.string_to_param.*": draw(2, 8),
        "bundle_emb.mytoken.string_to_token.*": torch.tensor(265),
    }
    path = write_lora(tmp_path / "a.safetensors", {**tensors, **embedding})
    torch.testing.assert_close(moved(path)[LINEAR], wanted)
    assert AdapterFile(path).notices == (
        "a.safetensors: the embedding mytoken in it is left out; its words are read as any others",
    )


def test_a_layer_under_two_names_is_refused_and_not_added_twice(tmp_path: Path) -> None:
    pair = {"lora_A.weight": draw(2, 6), "lora_B.weight": draw(4, 2)}
    named, _ = lora()
    two_ways = named | {f"{PATHS[LINEAR]}.{part}": one for part, one in pair.items()}
    file = AdapterFile(write_lora(tmp_path / "a.safetensors", two_ways))
    (problem,) = misfits(targets(), file, base="b")
    assert problem.found == f"a layer named in two ways: {LINEAR} and {PATHS[LINEAR]}"
    roots = ("", "base_model.model.")
    both = {
        f"{root}{PATHS[LINEAR]}.{part}": one.clone() for root in roots for part, one in pair.items()
    }
    with pytest.raises(ConfigError, match="a layer that is named in two ways"):
        AdapterFile(write_lora(tmp_path / "b.safetensors", both))


def test_an_alpha_of_0_has_no_effect(tmp_path: Path) -> None:
    tensors, _ = lora()
    tensors[f"{LINEAR}.alpha"] = torch.tensor(0.0)
    path = write_lora(tmp_path / "a.safetensors", tensors)
    assert not moved(path)[LINEAR].any()


def test_several_files_each_change_the_bases_own_weight(tmp_path: Path) -> None:
    tensors, plain = lora()
    one = write_lora(tmp_path / "one.safetensors", tensors)
    lengths = {**tensors, f"{LINEAR}.dora_scale": torch.full((1, 6), 0.5)}
    two = write_lora(tmp_path / "two.safetensors", lengths)
    alone = moved(two)[LINEAR]
    every = targets()
    weight = supported(every[0].module).weight.detach().clone()
    with applied(every, [(AdapterFile(one), 0.5), (AdapterFile(two), 1.0)]):
        summed = supported(every[0].module).weight.detach().clone()
    torch.testing.assert_close(summed, weight + 0.5 * plain + alone)


@pytest.mark.parametrize("dora", [False, True])
def test_a_run_of_ours_gives_the_same_bits_as_its_own_merge(tmp_path: Path, dora: bool) -> None:
    every = targets()
    options = replace(NETWORK, dora=dora, conv_dim=2, conv_alpha=1.0)
    network = build_network(every, options, seed=1)
    for group in network.parameter_groups():
        for number, weight in enumerate(group.parameters):
            weight.data += draw(*weight.shape, seed=number) / 10
    path = write_lora(tmp_path / "a.safetensors", network.state_dict())
    with network.merged():
        own = [supported(target.module).weight.detach().clone() for target in every]
    with applied(every, [(AdapterFile(path), 1.0)]):
        for weight, target in zip(own, every, strict=True):
            assert torch.equal(supported(target.module).weight, weight)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (keyed(LINEAR, lora_up__weight=draw(4, 2)), ("missing or too many", LINEAR)),
        (keyed(LINEAR, lokr_w1=draw(2, 2), lokr_w2_a=draw(2, 1)), ("missing or too many",)),
        (keyed(CONV, hada_w1_a=draw(4, 2), hada_w1_b=draw(2, 54)), ("missing or too many",)),
        (
            keyed(LINEAR, lokr_w1=draw(2, 2), lokr_w2=draw(2, 3), lora_up__weight=draw(2, 2)),
            ("missing or too many",),
        ),
        (keyed(LINEAR, lokr_w1=torch.ones(()), lokr_w2=torch.ones(())), ("do not fit together",)),
        (keyed(LINEAR, lokr_w1=draw(2, 2, 1, 1), lokr_w2=draw(2, 3)), ("do not fit together",)),
        (keyed(LINEAR, oft_blocks=draw(2, 2)), ("OFT",)),
        (keyed(LINEAR, diff=draw(4, 6)), ("full weight differences",)),
        ({"emb_params": draw(2, 6)}, ("no known form", "emb_params")),
        ({}, ("no tensor at all",)),
        (
            keyed(LINEAR, lora_up__weight=draw(4, 3), lora_down__weight=draw(2, 6)),
            ("do not fit together", "(4, 3)"),
        ),
        (
            keyed(LINEAR, lora_up__weight=draw(4, 2), lora_down__weight=draw(2, 6))
            | keyed(LINEAR, alpha=draw(2)),
            ("do not fit together",),
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    tmp_path: Path, tensors: Mapping[str, Tensor], words: tuple[str, ...]
) -> None:
    path = write_lora(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ConfigError) as raised:
        check_adapters([path])
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors, _ = loha()
    tensors[f"{CONV}.hada_w2_b"][0, 0] = float("nan")
    path = write_lora(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ConfigError, match="hada_w2_b"):
        check_adapters([path])
    with pytest.raises(DamagedFileError):
        AdapterFile(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        (keyed(LINEAR, lora_up__weight=draw(5, 2), lora_down__weight=draw(2, 6)), "other sizes"),
        (
            keyed("lora_te_x", lora_up__weight=draw(4, 2), lora_down__weight=draw(2, 6)),
            "no place for",
        ),
        (lora()[0] | keyed(LINEAR, dora_scale=draw(1, 5)), "other sizes"),
        (lora()[0] | keyed(LINEAR, dora_scale=draw(6, 1)), "other sizes"),
        # As many numbers as the layer has, but 2 inputs of a factor are no multiple of 3 x 3.
        (keyed(CONV, lokr_w1=draw(2, 27), lokr_w2=draw(2, 2)), "other sizes"),
    ],
)
def test_layers_without_a_place_in_the_base_are_refused(
    tmp_path: Path, tensors: Mapping[str, Tensor], word: str
) -> None:
    path = write_lora(tmp_path / "a.safetensors", tensors)
    check_adapters([path])
    found = misfits(targets(), AdapterFile(path), base="small")
    assert word in found[0].found


def test_every_layer_of_sdxl_is_found_under_its_three_names(tmp_path: Path) -> None:
    every = sdxl.tiny(1).lora_targets()
    tensors: Tensors = {}
    for number, target in enumerate(every):
        weight = supported(target.module).weight
        down = torch.zeros(1, *weight.shape[1:])
        up = torch.zeros(len(weight), 1, *(1 for _ in weight.shape[2:]))
        path = target.diffusers_path
        if number % 3 == 0:
            tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        else:
            underscored = f"lora_{path.replace('.', '_')}"
            name = target.name if number % 3 == 1 or target.part != "unet" else underscored
            tensors |= keyed(name, lora_down__weight=down, lora_up__weight=up)
    file = write_lora(tmp_path / "a.safetensors", tensors)
    assert misfits(every, AdapterFile(file), base="sdxl") == []
    assert len({target.diffusers_path for target in every}) == len(every)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_file_that_diffusers_wrote_moves_the_weights_as_diffusers_itself(
    tmp_path: Path, use_dora: bool
) -> None:
    base, theirs = sdxl.tiny(1), sdxl.tiny(1)
    parts = (theirs.unet, *theirs.text_encoders)
    given: dict[str, Any] = {}
    for part, name in zip(parts, ("unet", "text_encoder", "text_encoder_2"), strict=True):
        modules = ["to_q", "proj_in"] if name == "unet" else ["q_proj", "fc1"]
        config = LoraConfig(r=2, lora_alpha=6, target_modules=modules, use_dora=use_dora)
        part.add_adapter(config)
        for key, weight in part.named_parameters():
            if "lora_" in key:
                weight.data = draw(*weight.shape).abs() + 0.1
        given[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
        given[f"{name}_lora_adapter_metadata"] = config.to_dict()
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **given)
    (path,) = tmp_path.glob("*.safetensors")
    every = base.lora_targets()
    check_adapters([path])
    assert misfits(every, AdapterFile(path), base="sdxl") == []
    num_moved = 0
    with applied(every, [(AdapterFile(path), 1.0)]):
        places = {target.diffusers_path: supported(target.module).weight for target in every}
        for part, name in zip(parts, ("unet", "text_encoder", "text_encoder_2"), strict=True):
            for key, module in part.named_modules():
                if isinstance(module, LoraLayer):
                    module.merge()
                    path = f"{name}.{key}"
                    path = path.replace("text_encoder.enc", "text_encoder.text_model.enc")
                    own = places[path]
                    torch.testing.assert_close(own, module.get_base_layer().weight)
                    num_moved += 1
    assert num_moved > 8


def test_tensors_of_no_layer_are_passed_over_where_that_is_allowed(tmp_path: Path) -> None:
    tensors, change = lora()
    path = write_lora(tmp_path / "a.safetensors", {**tensors, "word.embedding": torch.ones(2, 3)})
    with pytest.raises(ConfigError, match="no known form"):
        AdapterFile(path)
    every = targets()
    weight = supported(every[0].module).weight
    before = weight.detach().clone()
    with applied(every, [(AdapterFile(path, allow_others=True), 1.0)]):
        torch.testing.assert_close(weight, before + change)
