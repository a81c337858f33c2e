"""What ends a training, what only skips an update, and how one goes on where it stopped."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench import rng
from optbench.errors import DivergedError
from optbench.lora.network import LoraNetwork
from optbench.records import StepRecord
from optbench.schema import OptimizerOptions
from optbench.training import global_rng
from tests.builders.small_training import (
    ADAMW,
    AVERAGED,
    COSINE,
    DADAPTED,
    NOISY,
    SGD,
    SmallBase,
    assert_equal,
    copies_of,
    make_network,
    make_optimizer,
    train_one,
    weights_of,
)


def at_call(number: int, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Return a `spoil` that changes the prediction of one batch, counted from 1."""
    return lambda predicted, call: change(predicted) if call == number else predicted


def with_infinite_gradient(predicted: Tensor) -> Tensor:
    predicted.register_hook(lambda gradient: gradient * math.inf)
    return predicted


# Divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(bad: float) -> None:
    base = SmallBase()
    network = make_network(base)
    base.spoil = at_call(5, lambda predicted: predicted * bad)
    kept: list[list[Tensor]] = []
    optimizer = make_optimizer(network)
    optimizer.optimizer.register_step_post_hook(lambda *_: kept.append(copies_of(network)))
    with pytest.raises(DivergedError) as caught:
        train_one(base, network, optimizer, epochs=2)
    (problem,) = caught.value.problems
    assert problem.where == "step 5 of epoch 2"
    assert f"a loss of {bad}" in problem.found
    assert "lr_mult" in problem.fix
    assert len(kept) == 4
    assert_equal(copies_of(network), kept[-1])


def test_a_gradient_that_is_not_finite_ends_the_run_although_the_loss_is() -> None:
    base = SmallBase()
    network = make_network(base)
    before = copies_of(network)
    base.spoil = at_call(1, with_infinite_gradient)
    with pytest.raises(DivergedError) as caught:
        train_one(base, network, make_optimizer(network), max_grad_norm=1.0)
    (problem,) = caught.value.problems
    assert problem.where == "step 1 of epoch 1"
    assert "gradient norm of" in problem.found
    assert "loss of nan" not in problem.found
    assert "not finite in the gradients of lora_te_text and 1 more" in problem.found
    assert_equal(copies_of(network), before)


def test_broken_weights_are_named_before_the_gradients_they_spoil() -> None:
    base = SmallBase()
    network = make_network(base)
    weights_of(network)[0].data.fill_(math.nan)
    with pytest.raises(DivergedError, match="not finite in the weights of lora_te_text;"):
        train_one(base, network, make_optimizer(network))


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved() -> None:
    base = SmallBase()
    network = make_network(base)
    base.spoil = lambda predicted, call: predicted * 1000
    # The last update of an epoch: no later loss would tell.
    optimizer = make_optimizer(network, replace(SGD, lr=3e38))
    with pytest.raises(DivergedError, match="the LoRA after epoch 1: found weights"):
        train_one(base, network, optimizer, total_steps=1)
    assert network.broken_layers("weights")


# fp16


def train_scaled(
    spoil: Callable[[Tensor, int], Tensor], *, scale: float = 2.0**10, **changes: Any
) -> tuple[list[StepRecord], LoraNetwork, torch.amp.GradScaler, Any]:
    """Train two epochs with a loss scale, on the CPU: its scaler is the GPU's."""
    base = SmallBase()
    base.spoil = spoil
    network = make_network(base)
    optimizer = make_optimizer(network, ADAMW, lr_scheduler=COSINE, total_steps=6)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
    steps, _ = train_one(
        base, network, optimizer, scaler=scaler, epochs=2, max_grad_norm=0.1, **changes
    )
    return steps, network, scaler, optimizer


def test_a_loss_scale_changes_nothing_that_is_recorded_or_trained() -> None:
    base = SmallBase()
    network = make_network(base)
    optimizer = make_optimizer(network, ADAMW, lr_scheduler=COSINE, total_steps=6)
    plain, _ = train_one(base, network, optimizer, epochs=2, max_grad_norm=0.1)
    scaled, own, scaler, _ = train_scaled(lambda predicted, call: predicted)
    assert scaler.get_scale() == 2.0**10
    # A power of two: scaling and unscaling are exact, and so must be the rest.
    assert_equal(copies_of(own), copies_of(network))
    for one, other in zip(scaled, plain, strict=True):
        assert (one.loss, one.grad_norm, one.lr) == (other.loss, other.grad_norm, other.lr)


def test_an_overflow_is_recorded_halves_the_scale_and_moves_nothing() -> None:
    steps, _, scaler, optimizer = train_scaled(at_call(3, with_infinite_gradient))
    assert [record.step for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [math.isfinite(record.grad_norm) for record in steps] == [True, True, False] + [True] * 3
    assert all(math.isfinite(record.loss) for record in steps)
    assert scaler.get_scale() == 2.0**9
    # The skipped update's rate is used by the next one, as accelerate's scheduler does.
    factors = [(1 + math.cos(math.pi * index / 6)) / 2 for index in (0, 1, 2, 2, 3, 4)]
    assert [record.lr["unet"] for record in steps] == pytest.approx(
        [1e-2 * factor for factor in factors]
    )
    counts = {int(state["step"]) for state in optimizer.optimizer.state.values()}
    assert counts == {5}


def test_after_an_overflow_training_goes_on_as_if_the_batch_had_not_been() -> None:
    """The gradients of the overflow must not leak into the next update."""
    _, network, _, _ = train_scaled(at_call(6, with_infinite_gradient))
    base = SmallBase()
    alone = make_network(base)
    optimizer = make_optimizer(alone, ADAMW, lr_scheduler=COSINE, total_steps=6)
    train_one(base, alone, optimizer, epochs=2, max_grad_norm=0.1, total_steps=5)
    assert_equal(copies_of(network), copies_of(alone))


def test_a_loss_of_nan_ends_a_scaled_run_too() -> None:
    with pytest.raises(DivergedError, match="step 2 of epoch 1"):
        train_scaled(at_call(2, lambda predicted: predicted * math.nan))


# Going on


@pytest.mark.parametrize(
    "options",
    [
        ADAMW,
        DADAPTED,
        AVERAGED,
        NOISY,
    ],
    ids=lambda options: options.target.rpartition(".")[2],
)
def test_a_training_that_goes_on_is_bit_for_bit_the_one_that_never_stopped(
    options: OptimizerOptions,
) -> None:
    settings: dict[str, Any] = {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2}
    base = SmallBase()
    straight = make_network(base, **settings)
    whole, _ = train_one(base, straight, make_optimizer(straight, options), epochs=4)

    half = make_network(base, **settings)
    optimizer = make_optimizer(half, options)
    first, _ = train_one(base, half, optimizer, epochs=2)
    file = io.BytesIO()
    torch.save((half.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)

    # What is rendered in between may draw as it likes.
    torch.manual_seed(1)
    resumed = make_network(base, filled=False, **settings)
    again = make_optimizer(resumed, options)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    rest, _ = train_one(base, resumed, again, epochs=4, step=6)

    assert_equal(copies_of(resumed), copies_of(straight))
    assert [told(record) for record in first + rest] == [told(record) for record in whole]


def test_resuming_inside_an_epoch_goes_on_with_the_batches_that_are_left() -> None:
    base = SmallBase()
    straight = make_network(base)
    train_one(base, straight, make_optimizer(straight), gradient_accumulation=2)
    resumed = SmallBase()
    network = make_network(resumed)
    train_one(resumed, network, make_optimizer(network), step=1, gradient_accumulation=2)
    (left,) = resumed.draws  # of three batches the first update has taken two
    assert_equal(left, base.draws[2])


def test_training_ends_at_its_last_step_also_inside_an_epoch() -> None:
    base = SmallBase()
    network = make_network(base)
    steps, epochs = train_one(base, network, make_optimizer(network), total_steps=4)
    assert [record.step for record in steps] == [1, 2, 3, 4]
    assert [record.epoch for record in epochs] == [1, 2]
    assert len(base.draws) == 4


def test_every_epoch_seeds_the_global_generators_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What libraries draw is no repetition of the epoch before."""
    seeded: list[tuple[int, int]] = []
    monkeypatch.setattr(global_rng, "seed_epoch", lambda seed, epoch: seeded.append((seed, epoch)))
    base = SmallBase()
    network = make_network(base)
    train_one(base, network, make_optimizer(network), epochs=2, seed=5)
    assert seeded == [(5, 1), (5, 2)]


def told(record: StepRecord) -> dict[str, Any]:
    return {key: value for key, value in record.as_row().items() if "seconds" not in key}


def test_every_batch_of_every_step_drops_at_an_address_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        LoraNetwork, "begin_step", lambda self, generator: seeds.append(generator.initial_seed())
    )
    base = SmallBase()
    network = make_network(base)
    train_one(base, network, make_optimizer(network), epochs=2, gradient_accumulation=2)
    places = [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0)]  # step, batch within it
    assert seeds == [rng.key(5, "dropout", *place) for place in places]
    assert len(set(seeds)) == 6


# Max-norm


@pytest.mark.parametrize("num_accumulated", [1, 3])
def test_no_layer_is_above_max_norm_when_an_epoch_ends(num_accumulated: int) -> None:
    base = SmallBase()
    network = make_network(base, scale_weight_norms=0.5)
    optimizer = make_optimizer(network, replace(SGD, lr=1.0))
    _, (epoch,) = train_one(base, network, optimizer, gradient_accumulation=num_accumulated)
    assert network.norms()["norm/max_key_norm"] <= 0.5 * (1 + 1e-5)
    assert {name: epoch.norms[name] for name in network.norms()} == pytest.approx(network.norms())
    assert "norm/keys_scaled" in epoch.norms
