"""The network: explicit formulas and PEFT as oracles, bitwise promises, dropout, max-norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optbench import contracts
from optbench.errors import ConfigError
from optbench.lora.network import LoraNetwork, as_in_file, build_network
from optbench.lora.save import save_lora
from optbench.records import LoraTarget
from tests.builders.network_options import PLAIN_NETWORK

OPTIONS = replace(PLAIN_NETWORK, conv_dim=3, conv_alpha=1.0)
KINDS = ("linear", "pointwise", "strided")


class TinyBase(nn.Module):
    """A text layer, a stride-2 3x3 convolution, a 1x1 convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(7, 6)
        self.strided = nn.Conv2d(5, 8, 3, stride=2, padding=1)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.linear = nn.Linear(6, 9)
        self.time = nn.Linear(6, 6)

    def forward(self, pixels_BCHW: Tensor, words_BTE: Tensor) -> Tensor:
        hidden = torch.tanh(self.pointwise(torch.tanh(self.strided(pixels_BCHW))))
        text_BTE = self.text(words_BTE)
        hidden = hidden + self.time(text_BTE.mean(1))[:, :, None, None]
        tokens_BTE = torch.cat([hidden.flatten(2).transpose(1, 2), text_BTE], 1)
        return self.linear(tokens_BTE)  # type: ignore[no-any-return]


def make_base() -> TinyBase:
    base = TinyBase()
    generator = torch.Generator().manual_seed(1)
    for weight in base.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 3
    return base.requires_grad_(False)


def targets_of(base: TinyBase) -> tuple[LoraTarget, ...]:
    return (
        LoraTarget(
            name="lora_te_text", module=base.text, part="text_encoder", needs_conv_dim=False
        ),
        LoraTarget(name="lora_unet_linear", module=base.linear, part="unet", needs_conv_dim=False),
        LoraTarget(
            name="lora_unet_pointwise", module=base.pointwise, part="unet", needs_conv_dim=False
        ),
        LoraTarget(name="lora_unet_strided", module=base.strided, part="unet", needs_conv_dim=True),
        LoraTarget(name="lora_unet_time", module=base.time, part="unet", needs_conv_dim=True),
    )


def make_network(base: TinyBase, *, filled: bool = True, **changes: Any) -> LoraNetwork:
    network = build_network(targets_of(base), replace(OPTIONS, **changes), seed=7)
    if filled:
        fill(network)
    return network


def fill(network: LoraNetwork, size: float = 0.5) -> None:
    """Give every weight a value of its own, up weights included."""
    generator = torch.Generator().manual_seed(2)
    for weight in weights_of(network):
        weight.data = torch.randn(weight.shape, generator=generator) * size


def weights_of(network: LoraNetwork) -> list[nn.Parameter]:
    return [weight for group in network.parameter_groups() for weight in group.parameters]


def assert_near(found: Tensor | None, expected: Tensor | None) -> None:
    """Sums in another order, float32: a few units in the last place of numbers around 1."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def inputs(num: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(num, 5, 8, 6, generator=generator),
        torch.randn(num, 4, 7, generator=generator),
    )


def layer_input(kind: str) -> Tensor:
    shape = {"linear": (2, 11, 6), "pointwise": (2, 8, 4, 3), "strided": (2, 5, 8, 6)}[kind]
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def factors(network: LoraNetwork, name: str) -> tuple[Tensor, Tensor, float]:
    """Return a layer's down and up as matrices, and its scale."""
    state = network.state_dict()
    down = state[f"{name}.lora_down.weight"].flatten(1)
    up = state[f"{name}.lora_up.weight"].flatten(1)
    return down, up, float(state[f"{name}.alpha"]) / down.shape[0]


def names_of(network: LoraNetwork) -> list[str]:
    return [key.removesuffix(".alpha") for key in network.state_dict() if key.endswith(".alpha")]


def products(network: LoraNetwork) -> dict[str, Tensor]:
    """Return every layer's scale * up @ down, formed in full and in float64."""
    found = {}
    for name in names_of(network):
        down, up, scale = factors(network, name)
        found[name] = up.double() @ down.double() * scale
    return found


def test_network_keeps_the_contract() -> None:
    network: contracts.Network = make_network(make_base())
    assert {one.name for one in network.parameter_groups()} == {"text_encoder", "unet"}


# What each layer adds


@pytest.mark.parametrize("kind", KINDS)
def test_layer_adds_the_scaled_product(kind: str) -> None:
    base = make_base()
    network = make_network(base)
    layer = getattr(base, kind)
    x = layer_input(kind)
    plain = layer(x)
    with network.attached():
        found = layer(x)
    down, up, scale = factors(network, f"lora_unet_{kind}")
    assert scale == (1 / 3 if kind == "strided" else 0.5)
    if kind == "linear":
        added = x @ down.T @ up.T
    elif kind == "pointwise":
        added = torch.einsum("or,ri,bihw->bohw", up, down, x)
    else:
        patches = functional.unfold(x, 3, stride=2, padding=1)
        added = (up @ (down @ patches)).view(plain.shape)
    assert_near(found - plain, scale * added)


@pytest.mark.parametrize("kind", ["plain", "rslora"])
def test_answers_as_peft_does(kind: str) -> None:
    import peft

    base, reference = make_base(), make_base()
    network = make_network(base, rslora=kind == "rslora")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=["text", "strided", "pointwise", "linear", "time"],
        rank_pattern={"strided": 3},
        alpha_pattern={"strided": 1},
        use_rslora=kind == "rslora",
    )
    oracle = peft.get_peft_model(reference, config)
    state = network.state_dict()
    with torch.no_grad():
        for target in targets_of(base):
            layer = getattr(oracle.base_model.model, target.name.rsplit("_", 1)[1])
            layer.lora_A["default"].weight.copy_(state[f"{target.name}.lora_down.weight"])
            layer.lora_B["default"].weight.copy_(state[f"{target.name}.lora_up.weight"])
    expected = oracle(*inputs())
    expected.square().mean().backward()
    with network.attached():
        found = base(*inputs())
        found.square().mean().backward()
    assert_near(found, expected)
    assert not torch.equal(found, base(*inputs()))
    gradients = {
        name: weight.grad for name, weight in oracle.named_parameters() if weight.requires_grad
    }
    weights = iter(weights_of(network))
    for target in targets_of(base):
        stem = f"base_model.model.{target.name.rsplit('_', 1)[1]}.lora_"
        assert_near(next(weights).grad, gradients[f"{stem}A.default.weight"])
        assert_near(next(weights).grad, gradients[f"{stem}B.default.weight"])


def test_dora_begins_as_the_base_and_keeps_kohyas_other_keys() -> None:
    base = make_base()
    network = make_network(base, filled=False, dora=True)
    with network.attached():
        attached = base(*inputs())
    assert torch.equal(attached, base(*inputs()))
    state = network.state_dict()
    assert state["lora_unet_linear.dora_scale"].shape == (1, 6)
    assert state["lora_unet_strided.dora_scale"].shape == (1, 5, 1, 1)
    expected = base.linear.weight.norm(dim=0)
    assert_near(state["lora_unet_linear.dora_scale"].flatten(), expected)
    again = make_network(base, dora=True)
    again.load_state_dict(state)
    assert all(torch.equal(again.state_dict()[key], state[key]) for key in state)


def read_by_others(weight: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Return a layer's weights as A1111 and ComfyUI make them from a file with dora_scale.

    The norm is a constant to the gradient, as the paper has it.
    """
    down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
    scale = state[f"{name}.alpha"] / down.shape[0]
    summed = weight + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    other_axes = [axis for axis in range(weight.ndim) if axis != 1]
    norm = summed.detach().square().sum(other_axes, keepdim=True).sqrt()
    return summed * (state[f"{name}.dora_scale"] / norm)


def test_dora_is_the_formula_and_so_are_its_gradients() -> None:
    base, reference = make_base(), make_base()
    network = make_network(base, dora=True)
    with network.attached():
        found = base(*inputs())
        found.square().mean().backward()
    state = {key: tensor.requires_grad_() for key, tensor in network.state_dict().items()}
    changed = {
        f"{name}.weight": read_by_others(module.weight, state, target.name)
        for target in targets_of(reference)
        for name, module in reference.named_modules()
        if module is target.module
    }
    expected = torch.func.functional_call(reference, changed, inputs())
    expected.square().mean().backward()
    assert_near(found, expected)
    assert len(changed) == 5
    keys = [key for key in state if not key.endswith(".alpha")]
    # In the order of a layer's parameters: down, up, length.
    for weight, key in zip(weights_of(network), keys, strict=True):
        assert_near(weight.grad, state[key].grad)


def test_dora_attached_answers_as_merged_does() -> None:
    base = make_base()
    network = make_network(base, dora=True)
    with network.attached():
        attached = base(*inputs())
    weights = {name: weight.clone() for name, weight in base.named_parameters()}
    with network.merged():
        assert_near(base(*inputs()), attached)
        changes = [
            (module.weight - weights[f"{name}.weight"]).norm()
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]
    assert network.norms()["norm/max_key_norm"] == pytest.approx(float(max(changes)), rel=1e-5)
    assert all(torch.equal(weights[name], weight) for name, weight in base.named_parameters())


def test_rslora_is_in_the_alpha_of_the_file() -> None:
    base = make_base()
    plain, stable = make_network(base), make_network(base, rslora=True)
    assert stable.state_dict()["lora_unet_linear.alpha"] == 2 * math.sqrt(4)
    assert stable.state_dict()["lora_unet_strided.alpha"] == pytest.approx(math.sqrt(3))
    assert torch.equal(
        plain.state_dict()["lora_unet_linear.lora_down.weight"],
        stable.state_dict()["lora_unet_linear.lora_down.weight"],
    )


def test_attached_answers_as_merged_does() -> None:
    base = make_base()
    network = make_network(base)
    with network.attached():
        attached = base(*inputs())
    with network.merged():
        merged = base(*inputs())
    assert_near(merged, attached)
    assert (merged - base(*inputs())).abs().max() > 0.1


@pytest.mark.parametrize("context", ["attached", "merged"])
def test_base_is_bitwise_the_same_afterwards(context: str) -> None:
    base = make_base()
    base.linear.to(torch.bfloat16)
    base.strided.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = make_network(base)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    strides = base.strided.weight.stride()
    answer = base.strided(layer_input("strided"))

    def interrupt() -> None:
        with getattr(network, context)():
            assert base.state_dict().keys() == before.keys()
            assert not torch.equal(base.strided(layer_input("strided")), answer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    for key, value in base.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key]), key
    assert base.strided.weight.stride() == strides
    assert torch.equal(base.strided(layer_input("strided")), answer)


def test_merging_rounds_once_to_the_dtype_of_the_base() -> None:
    base = make_base()
    base.linear.to(torch.bfloat16)
    network = make_network(base)
    original = base.linear.weight.double()
    with network.merged():
        assert base.linear.weight.dtype == torch.bfloat16
        found = base.linear.weight.double()
    exact = original + products(network)["lora_unet_linear"]
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_merging_a_weight_that_two_layers_share_restores_it() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    original = first.weight.detach().clone()
    targets = [
        LoraTarget(name=name, module=module, part="unet", needs_conv_dim=False)
        for name, module in (("a", first), ("b", second))
    ]
    network = build_network(targets, OPTIONS, seed=1)
    fill(network)
    with network.merged():
        assert not torch.equal(first.weight, original)
    assert torch.equal(first.weight, original)


@pytest.mark.parametrize("outer", ["attached", "merged"])
@pytest.mark.parametrize("inner", ["attached", "merged"])
def test_contexts_exclude_each_other(outer: str, inner: str) -> None:
    base = make_base()
    network = make_network(base)
    plain = base(*inputs())
    with getattr(network, outer)():
        with pytest.raises(AssertionError, match=f"already {outer}"), getattr(network, inner)():
            pass
        assert not torch.equal(base(*inputs()), plain)  # the outer context goes on
    assert torch.equal(base(*inputs()), plain)
    with getattr(network, inner)():
        pass


def test_fresh_network_changes_nothing() -> None:
    base = make_base()
    network = make_network(base, filled=False)
    with network.attached():
        attached = base(*inputs())
    assert torch.equal(attached, base(*inputs()))


def test_gradients_reach_only_the_network() -> None:
    base = make_base()
    network = make_network(base)
    with network.attached():
        base(*inputs()).square().mean().backward()
    assert all(weight.grad is None for weight in base.parameters())
    for weight in weights_of(network):
        assert weight.requires_grad
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_autocast_keeps_float32_weights_and_gradients() -> None:
    base = make_base()
    network = make_network(base)
    with network.attached():
        exact = base(*inputs())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = base(*inputs())
        rough.float().square().mean().backward()
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.1)
    assert {weight.grad.dtype for weight in weights_of(network) if weight.grad is not None} == {
        torch.float32
    }


# Which layers, which sizes, which starting values


def test_sizes_follow_the_options() -> None:
    state = make_network(make_base()).state_dict()
    found = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    sizes = {
        "lora_te_text": ((4, 7), (6, 4)),
        "lora_unet_linear": ((4, 6), (9, 4)),
        "lora_unet_pointwise": ((4, 8, 1, 1), (6, 4, 1, 1)),
        "lora_unet_strided": ((3, 5, 3, 3), (8, 3, 1, 1)),
        "lora_unet_time": ((4, 6), (6, 4)),
    }
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, (down, up) in sizes.items():
        expected[f"{name}.lora_down.weight"] = (down, torch.float32)
        expected[f"{name}.lora_up.weight"] = (up, torch.float32)
        expected[f"{name}.alpha"] = ((), torch.float32)
    assert list(found.items()) == list(expected.items())
    alphas = [float(state[f"{name}.alpha"]) for name in sizes]
    assert alphas == [2, 2, 2, 1, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conv_dim": None, "conv_alpha": None}, ["te_text", "unet_linear", "unet_pointwise"]),
        ({"train_unet": False}, ["te_text"]),
        (
            {"train_text_encoder": False},
            ["unet_linear", "unet_pointwise", "unet_strided", "unet_time"],
        ),
    ],
)
def test_layers_follow_the_options(changes: dict[str, Any], expected: list[str]) -> None:
    network = make_network(make_base(), **changes)
    assert names_of(network) == [f"lora_{name}" for name in expected]
    parts = {"text_encoder" if name.startswith("te") else "unet" for name in expected}
    groups = network.parameter_groups()
    # In order; parts without layers are absent.
    assert [group.name for group in groups] == sorted(parts)
    assert sum(len(group.parameters) for group in groups) == 2 * len(expected)


def test_several_networks_in_one_process_do_not_mix() -> None:
    base = make_base()
    plain = names_of(make_network(base, conv_dim=None, conv_alpha=None))
    make_network(base)
    assert names_of(make_network(base, conv_dim=None, conv_alpha=None)) == plain


def test_three_by_three_layer_is_left_alone_without_conv_dim() -> None:
    base = make_base()
    bare = [replace(target, needs_conv_dim=False) for target in targets_of(base)]
    network = build_network(bare, replace(OPTIONS, conv_dim=None, conv_alpha=None), seed=1)
    assert "lora_unet_strided" not in names_of(network)
    assert "lora_unet_time" in names_of(network)


def test_start_depends_on_seed_and_name_alone() -> None:
    base = make_base()
    torch.manual_seed(123)
    whole = make_network(base, filled=False).state_dict()
    torch.manual_seed(456)
    before = torch.get_rng_state()
    alone = build_network(targets_of(base)[2:3], OPTIONS, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert alone
    for key, value in alone.items():
        assert torch.equal(value, whole[key])
    other = build_network(targets_of(base)[2:3], OPTIONS, seed=8).state_dict()
    key = "lora_unet_pointwise.lora_down.weight"
    assert not torch.equal(other[key], whole[key])


def test_layers_of_one_shape_start_apart_and_drop_apart() -> None:
    layers = [nn.Linear(16, 16), nn.Linear(16, 16)]
    targets = [
        LoraTarget(name=name, module=layer, part="unet", needs_conv_dim=False)
        for name, layer in zip("ab", layers, strict=True)
    ]
    for changes in ({"dropout": 0.5}, {"rank_dropout": 0.5}):
        options = replace(OPTIONS, dim=16, **changes)  # type: ignore[arg-type]
        network = build_network(targets, options, seed=1)
        assert not torch.equal(*(weights_of(network)[index] for index in (0, 2)))
        for name, layer in zip("ab", layers, strict=True):
            expose_ranks(network, layer, name)
        begin(network)
        x = torch.ones(8, 16)
        assert not torch.equal(answer(network, layers[0], x), answer(network, layers[1], x))


@pytest.mark.parametrize(("kind", "fan_in"), [("linear", 6), ("pointwise", 8), ("strided", 45)])
def test_start_is_kaiming_uniform_and_zero(kind: str, fan_in: int) -> None:
    network = make_network(make_base(), filled=False, dim=200, conv_dim=200)
    down, up, _ = factors(network, f"lora_unet_{kind}")
    bound = 1 / math.sqrt(fan_in)
    assert down.abs().max() <= bound
    # A uniform draw has variance bound^2 / 3; 1200 and more draws hold it within 10 %.
    assert float(down.var()) == pytest.approx(bound**2 / 3, rel=0.1)
    assert not up.any()


def test_alpha_zero_stands_for_dim_as_in_kohyas_trainer() -> None:
    assert factors(make_network(make_base(), alpha=0.0), "lora_unet_linear")[2] == 1


@pytest.mark.parametrize(
    ("changes", "part", "words"),
    [
        (
            {"train_unet": False, "train_text_encoder": False},
            "all",
            ["network.train_unet=true", "network.train_text_encoder=true"],
        ),
        ({"train_unet": False}, "unet", ["network.train_unet=true"]),
        ({"conv_dim": None, "conv_alpha": None}, "conv", ["network.conv_dim=4", "alpha=2"]),
        ({"conv_alpha": None}, "all", ["network.conv_alpha=1.5"]),
    ],
)
def test_nothing_to_train_is_refused(
    changes: dict[str, Any], part: str, words: Sequence[str]
) -> None:
    chosen = {"all": slice(None), "unet": slice(1, None), "conv": slice(3, None)}[part]
    with pytest.raises(ConfigError) as caught:
        build_network(targets_of(make_base())[chosen], replace(OPTIONS, **changes), seed=1)
    for word in words:
        assert word in str(caught.value)


# Dropout


def answer(network: LoraNetwork, layer: nn.Module, x: Tensor) -> Tensor:
    with network.attached(), torch.no_grad():
        return layer(x)  # type: ignore[no-any-return]


def begin(network: LoraNetwork, seed: int = 0) -> None:
    network.begin_step(torch.Generator().manual_seed(seed))


def expose_ranks(network: LoraNetwork, layer: nn.Linear | nn.Conv2d, name: str) -> None:
    """Make the layer answer with the rank activation itself, all ones before any dropout."""
    state = network.state_dict()
    layer.weight.data.zero_()
    assert layer.bias is not None
    layer.bias.data.zero_()
    down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
    down.fill_(1 / down[0].numel())
    up.copy_(torch.eye(*up.shape[:2]).view(up.shape))
    network.load_state_dict(state)


@pytest.fixture
def wide() -> Callable[..., tuple[LoraNetwork, nn.Linear | nn.Conv2d, Tensor]]:
    """Return a maker of a layer whose answer is its rank activation, and ones to put in."""

    def make(kind: str, **changes: Any) -> tuple[LoraNetwork, nn.Linear | nn.Conv2d, Tensor]:
        layer = nn.Linear(5, 64) if kind == "linear" else nn.Conv2d(5, 64, 1)
        target = LoraTarget(name="wide", module=layer, part="unet", needs_conv_dim=False)
        options = replace(OPTIONS, dim=64, alpha=64.0, **changes)
        network = build_network([target], options, seed=1)
        expose_ranks(network, layer, "wide")
        x = torch.ones((40, 20, 5) if kind == "linear" else (40, 5, 4, 5))
        torch.testing.assert_close(answer(network, layer, x).mean(), torch.tensor(1.0))
        return network, layer, x

    return make


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_element_dropout_cuts_elements_and_rescales(kind: str, wide: Any) -> None:
    network, layer, x = wide(kind, dropout=0.25)
    begin(network)
    found = answer(network, layer, x)
    dropped = found == 0
    torch.testing.assert_close(found[~dropped].mean(), torch.tensor(1 / 0.75))
    # 51200 draws: three standard deviations are 0.006.
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.006)
    by_rank = dropped.float().mean((0, 1) if kind == "linear" else (0, 2, 3))
    assert by_rank.min() > 0.15  # no whole channel survives or falls
    assert by_rank.max() < 0.35


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_rank_dropout_cuts_whole_channels_of_each_sample(kind: str, wide: Any) -> None:
    network, layer, x = wide(kind, rank_dropout=0.25)
    begin(network)
    found = answer(network, layer, x)
    found_BRN = found.transpose(1, 2) if kind == "linear" else found.flatten(2)
    assert torch.equal(found_BRN, found_BRN[:, :, :1].expand_as(found_BRN))
    mask_BR = found_BRN[:, :, 0]
    assert sorted(set(mask_BR.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    # 2560 draws: three standard deviations are 0.026.
    assert float((mask_BR == 0).float().mean()) == pytest.approx(0.25, abs=0.026)
    assert not torch.equal(mask_BR[0], mask_BR[1])


def test_rank_dropout_on_a_layer_without_tokens() -> None:
    base = make_base()
    network = make_network(base, rank_dropout=0.5)
    expose_ranks(network, base.time, "lora_unet_time")
    begin(network)
    found = answer(network, base.time, torch.ones(200, 6))[:, :4]
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0, 1])  # 0.5 scale, doubled
    assert float((found == 0).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_both_dropouts_multiply(wide: Any) -> None:
    network, layer, x = wide("linear", dropout=0.2, rank_dropout=0.25)
    begin(network)
    found = answer(network, layer, x)
    assert float(found.max()) == pytest.approx(1 / (0.8 * 0.75), rel=1e-5)
    assert float((found == 0).float().mean()) == pytest.approx(1 - 0.8 * 0.75, abs=0.03)
    # Without tokens both masks have one shape; drawn from one stream they would be equal.
    network.begin_step(torch.Generator().manual_seed(9))
    bare = answer(network, layer, torch.ones(200, 5))
    assert float((bare == 0).float().mean()) == pytest.approx(1 - 0.8 * 0.75, abs=0.03)
    begin(network)
    # The stream of one does not move with the other.
    alone, lonely, _ = wide("linear", rank_dropout=0.25)
    begin(alone)
    assert not found[answer(alone, lonely, x) == 0].any()


def test_module_dropout_drops_whole_branches_without_rescaling() -> None:
    layers = [nn.Linear(3, 3) for _ in range(300)]
    targets = [
        LoraTarget(name=f"layer{index}", module=layer, part="unet", needs_conv_dim=False)
        for index, layer in enumerate(layers)
    ]
    network = build_network(targets, replace(OPTIONS, module_dropout=0.3), seed=1)
    fill(network)
    x = torch.ones(2, 3)
    plain = [layer(x) for layer in layers]
    with network.attached():
        full = [layer(x) for layer in layers]
        begin(network)
        found = [layer(x) for layer in layers]
    dropped = [torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(found, full, strict=True)]
    assert all(a != b for a, b in zip(dropped, kept, strict=True))
    assert sum(dropped) / 300 == pytest.approx(0.3, abs=0.08)  # three standard deviations
    begin(network, seed=1)
    with network.attached():
        other = [torch.equal(layer(x), before) for layer, before in zip(layers, plain, strict=True)]
    assert other != dropped


ALL_DROPOUTS: dict[str, Any] = {"dropout": 0.3, "rank_dropout": 0.3, "module_dropout": 0.3}


def test_dropout_depends_on_the_generator_alone() -> None:
    base = make_base()
    network = make_network(base, **ALL_DROPOUTS)
    begin(network, seed=5)
    first = answer(network, base.linear, layer_input("linear"))
    network.end_step()
    torch.rand(17)
    begin(network, seed=5)
    answer(network, base.strided, layer_input("strided"))  # another order of calls
    again = answer(network, base.linear, layer_input("linear"))
    assert torch.equal(again, first)
    # Asked twice within a step: the same masks, so a recomputed activation is the same.
    assert torch.equal(answer(network, base.linear, layer_input("linear")), first)
    others = []
    for seed in range(6, 12):
        begin(network, seed=seed)
        others.append(answer(network, base.linear, layer_input("linear")))
    assert not any(torch.equal(other, first) for other in others)


def test_dropout_of_a_layer_does_not_depend_on_the_others() -> None:
    base = make_base()
    whole = make_network(base, **ALL_DROPOUTS)
    alone = build_network(targets_of(base)[1:2], whole._options, seed=7)
    state = whole.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    for seed in range(5):
        begin(whole, seed)
        begin(alone, seed)
        x = layer_input("linear")
        assert torch.equal(answer(whole, base.linear, x), answer(alone, base.linear, x))


def test_consecutive_steps_of_one_generator_differ(wide: Any) -> None:
    network, layer, x = wide("linear", dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    network.begin_step(generator)
    first = answer(network, layer, x)
    network.begin_step(generator)
    assert not torch.equal(answer(network, layer, x), first)


def test_nothing_is_dropped_outside_a_step() -> None:
    base = make_base()
    network = make_network(base, **ALL_DROPOUTS)
    plain = make_network(base)
    with plain.attached():
        expected = base(*inputs())
    with network.attached():
        assert torch.equal(base(*inputs()), expected)
        begin(network)
        assert not torch.equal(base(*inputs()), expected)
        assert network.end_step() == {}
        assert torch.equal(base(*inputs()), expected)


def test_gradients_are_dropped_with_the_activations(wide: Any) -> None:
    network, layer, x = wide("linear", rank_dropout=0.5)
    begin(network)
    with network.attached():
        found = layer(x[:1])
        found.sum().backward()
    down, _ = weights_of(network)
    assert down.grad is not None
    assert torch.equal(down.grad.any(1), found[0, 0] != 0)


# Max-norm


@pytest.mark.parametrize("limit", [0.5, 2.0, 1000.0])
def test_max_norm_follows_the_written_formula(limit: float) -> None:
    network = make_network(make_base(), scale_weight_norms=limit)
    before, old = network.state_dict(), products(network)
    found = network.end_step()
    after, new = network.state_dict(), products(network)
    recorded = []
    num_scaled = 0
    for name, product in old.items():
        norm = float(torch.linalg.matrix_norm(product))
        bounded = max(norm, limit / 2)
        ratio = min(bounded, limit) / bounded
        num_scaled += ratio != 1
        recorded.append(norm * ratio)
        torch.testing.assert_close(new[name], product * ratio, rtol=1e-5, atol=1e-7)
        for kind in ("down", "up"):
            key = f"{name}.lora_{kind}.weight"
            expected = before[key] * math.sqrt(ratio)
            if ratio == 1:
                assert torch.equal(after[key], before[key])
            torch.testing.assert_close(after[key], expected, rtol=1e-5, atol=0)
    assert found == {
        "norm/keys_scaled": num_scaled,
        "norm/average_key_norm": pytest.approx(sum(recorded) / len(recorded), rel=1e-5),
        "norm/max_key_norm": pytest.approx(max(recorded), rel=1e-5),
    }
    assert {0.5: num_scaled == 5, 2.0: 0 < num_scaled < 5, 1000.0: num_scaled == 0}[limit]


def test_norm_of_a_composed_convolution_kernel() -> None:
    base = make_base()
    network = make_network(base)
    original = base.strided.weight.detach().clone()
    with network.merged():
        kernel = base.strided.weight - original
    state = network.state_dict()
    down = state["lora_unet_strided.lora_down.weight"]
    up = state["lora_unet_strided.lora_up.weight"]
    # Kohya's way to compose: the down kernel as a picture, seen by the up convolution.
    composed = functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) / 3
    assert_near(kernel, composed)
    explicit = float(products(network)["lora_unet_strided"].norm())
    assert float(composed.norm()) == pytest.approx(explicit, rel=1e-5)


@pytest.mark.parametrize("size", [1e-4, 0.5, 30.0])
def test_norms_equal_those_of_the_full_products(size: float) -> None:
    network = make_network(make_base(), filled=False)
    assert network.norms() == {"norm/average_key_norm": 0, "norm/max_key_norm": 0}
    fill(network, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the norms
        found = network.norms()
    norms = [float(product.norm()) for product in products(network).values()]
    assert found == {
        "norm/average_key_norm": pytest.approx(sum(norms) / len(norms), rel=1e-5),
        "norm/max_key_norm": pytest.approx(max(norms), rel=1e-5),
    }


def test_without_max_norm_no_norm_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(make_base())
    before = network.state_dict()
    monkeypatch.setattr(type(network), "_layer_norms", None)
    assert network.end_step() == {}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# State


def test_state_round_trip_is_bit_exact() -> None:
    network = make_network(make_base())
    state = network.state_dict()
    other = make_network(make_base(), filled=False)
    parameters = weights_of(other)
    other.load_state_dict(dict(reversed(state.items())))
    found = other.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
    # An optimizer made before the load still owns the network's weights.
    assert all(a is b for a, b in zip(parameters, weights_of(other), strict=True))


def test_state_is_a_copy() -> None:
    network = make_network(make_base())
    state = network.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    for weight in weights_of(network):
        weight.data.add_(1)
    assert all(torch.equal(state[key], kept[key]) for key in state)
    assert not any(value.requires_grad for value in state.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_state_is_widened_exactly(dtype: torch.dtype) -> None:
    network = make_network(make_base(), alpha=0.3)
    state = {key: value.to(dtype) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    found = network.state_dict()
    for key, value in state.items():
        if not key.endswith(".alpha"):  # alpha is the run's own, unrounded
            assert torch.equal(found[key], value.float())
    assert float(found["lora_unet_linear.alpha"]) == pytest.approx(0.3, rel=1e-7)


def test_unfit_state_is_refused_with_every_name_and_loads_nothing() -> None:
    network = make_network(make_base())
    before = network.state_dict()
    given = {key: value + 1 for key, value in before.items() if not key.endswith("alpha")}
    given |= {key: value for key, value in before.items() if key.endswith("alpha")}
    del given["lora_te_text.alpha"], given["lora_unet_time.lora_up.weight"]
    given["lora_unet_other.dora_scale"] = torch.ones(3)
    given["strange"] = torch.ones(3)
    given["lora_unet_linear.lora_down.weight"] = torch.ones(8, 6)
    given["lora_unet_pointwise.lora_up.weight"] = torch.ones(6, 4, 1, 1, dtype=torch.int64)
    given["lora_unet_strided.alpha"] = torch.tensor(3.0)
    with pytest.raises(ConfigError) as caught:
        network.load_state_dict(given)
    message = str(caught.value)
    assert len(caught.value.problems) == 5
    for word in (
        "missing keys: lora_te_text.alpha, lora_unet_time.lora_up.weight;",
        "unknown keys: lora_unet_other.dora_scale, strange;",
        "lora_unet_linear.lora_down.weight (8, 6) for (4, 6);",
        "lora_unet_pointwise.lora_up.weight torch.int64;",
        "lora_unet_strided.alpha 3 for 1;",
    ):
        assert word in message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_layer_is_broken_by_one_bad_number(bad: float) -> None:
    network = make_network(make_base())
    assert network.broken_layers("weights") == network.broken_layers("gradients") == ()
    last = weights_of(network)[-1]
    last.grad = torch.full_like(last, bad)
    assert network.broken_layers("weights") == ()
    (name,) = network.broken_layers("gradients")
    last.data.view(-1)[-1] = bad
    assert network.broken_layers("weights") == (name,)
    assert f"{name}.lora_up.weight" in network.state_dict()


def test_a_files_weights_are_lent_though_its_alphas_are_rounded(tmp_path: Path) -> None:
    network = make_network(make_base(), rslora=True, dim=6)  # 3 * sqrt(6) is no 16-bit number
    before = network.state_dict()
    path = tmp_path / "lora.safetensors"
    save_lora(path, {key: 2 * value if "up" in key else value for key, value in before.items()},
              precision="fp16", metadata={})  # fmt: skip
    with as_in_file(network, path):
        lent = network.state_dict()
        assert torch.allclose(lent["lora_unet_time.lora_up.weight"],
                              2 * before["lora_unet_time.lora_up.weight"], rtol=1e-3)  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_pointwise_convolution_takes_a_linear_layers_tensors_and_the_other_way_round() -> None:
    """SD2's projections are linear in a folder, and 1x1 convolutions in kohya's single files."""
    base = make_base()
    network = make_network(base)
    before = network.state_dict()
    other_way = {
        key: tensor.flatten(1)
        if key.startswith("lora_unet_pointwise.lora_")
        else tensor[..., None, None]
        if key.startswith("lora_unet_linear.lora_")
        else tensor
        for key, tensor in before.items()
    }
    assert sum(other_way[key].shape != tensor.shape for key, tensor in before.items()) == 4
    again = make_network(base, filled=False)
    again.load_state_dict(other_way)
    after = again.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    strided = "lora_unet_strided.lora_down.weight"
    with pytest.raises(ConfigError, match="other shapes"):
        again.load_state_dict({**before, strided: before[strided].flatten(1)})
