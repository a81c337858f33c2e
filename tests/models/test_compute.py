"""Recomputed activations change no bit of a training; attention by another code only the last."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch._dynamo
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.utils import checkpoint

from optbench.models import compute, sd15
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text.clip import ClipTextOptions
from optbench.records import Batch
from tests.builders.small_training import (
    ADAMW,
    LOSS,
    copies_of,
    make_batch,
    make_network,
    make_optimizer,
    train_one,
)

NETWORKS: list[dict[str, Any]] = [
    {},
    {"conv_dim": 2, "conv_alpha": 1.0},
    {"dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.2, "conv_dim": 2, "conv_alpha": 1.0},
    {"train_text_encoder": False, "dropout": 0.3},
    {"train_unet": False, "rank_dropout": 0.3},
    {"dora": True, "rslora": True},
]


def four_pictures(epoch: int) -> list[Batch]:
    """Return two batches of two, as large as the random base wants them."""
    batches = []
    for keys in ("ab", "cd"):
        batch = make_batch(*keys, epoch=epoch)
        draws = [torch.Generator().manual_seed(zlib.crc32(key.encode())) for key in keys]
        latents_BCHW = torch.stack([torch.randn(4, 8, 12, generator=draw) for draw in draws])
        batches.append(replace(batch, latents_BCHW=latents_BCHW))
    return batches


def trained(network: dict[str, Any], **changes: Any) -> tuple[StableDiffusion, list[Tensor]]:
    """Return the base and the LoRA's weights after two epochs on two batches each."""
    base: Any = sd15.tiny(3)
    usual = {"gradient_checkpointing": False, "attention": "sdpa", "compiled_by": None}
    base.compute_with(**usual | changes)
    lora = make_network(base, filled=False, **network)
    train_one(base, lora, make_optimizer(lora, ADAMW), four_pictures, epochs=2)
    return base, copies_of(lora)


@pytest.fixture
def num_recomputed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often blocks of the unet, and layers of the text encoder, are to be recomputed."""
    calls = [0, 0]
    original = checkpoint.checkpoint

    def counting(part: int, *args: Any, **settings: Any) -> Any:
        calls[part] += 1
        return original(*args, **settings)

    monkeypatch.setattr(checkpoint, "checkpoint", functools.partial(counting, 0))
    in_text = functools.partial(counting, 1, use_reentrant=False)
    monkeypatch.setattr(compute, "_RECOMPUTE", in_text)
    return calls


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_recomputed_activations_give_the_same_weights_bit_for_bit(
    network: dict[str, Any], num_recomputed: list[int]
) -> None:
    base, plain = trained(network)
    assert num_recomputed == [0, 0]
    other, recomputed = trained(network, gradient_checkpointing=True)
    # Every block of the unet, and both layers of the text encoder: 4 updates.
    assert num_recomputed[0] >= 4 * 5
    assert num_recomputed[1] == 4 * 2
    assert any(bool(one.any()) for one in plain[1::2])  # up weights have left zero
    assert all(torch.equal(one, two) for one, two in zip(plain, recomputed, strict=True))
    fresh = sd15.tiny(3)
    for untouched in (base, other):
        for part in ("unet", "text_encoder", "vae"):
            pairs = zip(
                getattr(untouched, part).parameters(), getattr(fresh, part).parameters(),
                strict=True,
            )  # fmt: skip
            assert all(torch.equal(one, two) for one, two in pairs)


def test_switched_off_again_nothing_is_recomputed(num_recomputed: list[int]) -> None:
    base = sd15.tiny(3)
    base.compute_with(gradient_checkpointing=True, attention="sdpa", compiled_by=None)
    assert not base.text_encoder.training
    base.compute_with(gradient_checkpointing=False, attention="sdpa", compiled_by=None)
    assert not any(module.training for module in base.text_encoder.modules())
    assert not any(module.training for module in base.unet.modules())
    base.predict(
        torch.randn(1, 4, 8, 8).requires_grad_(),
        torch.tensor([5]),
        base.encode_captions(["a"], ClipTextOptions()),
    )
    assert num_recomputed == [0, 0]


def test_a_checkpoint_with_dropout_in_its_config_does_not_begin_to_drop() -> None:
    base = sd15.tiny(3)
    for layer in compute.text_model(base.text_encoder).encoder.layers:
        layer.self_attn.dropout = 0.5
    before = base.encode_captions(["a girl"], ClipTextOptions())["states_BTE"]
    base.compute_with(gradient_checkpointing=True, attention="sdpa", compiled_by=None)
    assert torch.equal(base.encode_captions(["a girl"], ClipTextOptions())["states_BTE"], before)


def test_attention_is_computed_by_the_code_that_was_asked_for() -> None:
    sdpa, fast = trained({})
    eager, plain = trained({}, attention="eager")
    assert {type(one) for one in sdpa.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert {type(one) for one in eager.unet.attn_processors.values()} == {AttnProcessor}
    assert sdpa.text_encoder.config._attn_implementation == "sdpa"
    assert eager.text_encoder.config._attn_implementation == "eager"
    for one, two in zip(fast, plain, strict=True):
        # Sums in another order, over four updates of AdamW.
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-4)


def test_in_bf16_the_base_computes_in_16_bits_and_the_lora_stays_float32() -> None:
    _, exact = trained({})
    base: Any = sd15.tiny(3)
    for part in (base.unet, base.text_encoder):
        part.to(torch.bfloat16)
    base.dtype = torch.bfloat16
    lora = make_network(base, filled=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    steps, _ = train_one(
        base, lora, make_optimizer(lora, ADAMW), four_pictures, epochs=2, accelerator=accelerator
    )
    found = copies_of(lora)
    assert {one.dtype for one in found} == {torch.float32}
    assert all(bool(one.isfinite().all()) for one in found)
    assert all(math.isfinite(record.loss) for record in steps)
    moved, wanted = (torch.cat([one.flatten() for one in ups[1::2]]) for ups in (found, exact))
    # 8 bits of mantissa in every activation, and AdamW's first updates are signs.
    assert float(torch.cosine_similarity(moved, wanted, dim=0)) > 0.8
    # 16-bit weights would have no other values than these.
    assert not torch.equal(moved, moved.bfloat16().float())


def test_as_loaded_the_base_attends_as_sdpa_does() -> None:
    untouched: Any = sd15.tiny(3)
    lora = make_network(untouched, filled=False)
    train_one(untouched, lora, make_optimizer(lora, ADAMW), four_pictures, epochs=2)
    _, chosen = trained({})
    assert all(torch.equal(one, two) for one, two in zip(copies_of(lora), chosen, strict=True))


def test_recomputed_activations_suit_every_loss() -> None:
    """The noise of a recomputed forward pass is not drawn again."""
    everything = replace(LOSS, noise_offset=0.1, ip_noise_gamma=0.1, min_snr_gamma=5.0)
    found = []
    for is_on in (False, True):
        base: Any = sd15.tiny(3)
        base.compute_with(gradient_checkpointing=is_on, attention="sdpa", compiled_by=None)
        lora = make_network(base, filled=False)
        train_one(base, lora, make_optimizer(lora, ADAMW), four_pictures, loss=everything)
        found.append(copies_of(lora))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
def test_a_compiled_unet_trains_the_same_lora() -> None:
    network = {"dora": True, "conv_dim": 2, "conv_alpha": 1.0}
    _, plain = trained(network)
    base, found = trained(network, compiled_by="eager")
    assert num_graphs() > 0
    assert any(bool(one.any()) for one in plain[1::2])
    # This backend runs what was traced operation by operation, so no bit differs.
    assert all(torch.equal(one, two) for one, two in zip(plain, found, strict=True))
    base.compute_with(gradient_checkpointing=False, attention="sdpa", compiled_by=None)
    assert base._compiled_unet is None


@pytest.mark.slow
def test_compiled_code_notices_a_lora_that_was_detached() -> None:
    base = sd15.tiny(3)
    base.compute_with(gradient_checkpointing=False, attention="sdpa", compiled_by="eager")
    lora = make_network(cast(Any, base))
    noisy_BCHW = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    states = base.encode_captions(["a"], ClipTextOptions())

    def answer() -> Tensor:
        return base.predict(noisy_BCHW, torch.tensor([5]), states)

    with torch.no_grad():
        alone = answer()
        with lora.attached():
            beside = answer()
        assert torch.equal(answer(), alone)
    assert not torch.equal(beside, alone)


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
