"""Paired validation loss: fixed draws, nothing touched, and what its records hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from optbench.data.beside import check_apart
from optbench.lora.network import LoraNetwork, build_network
from optbench.lora.save import save_lora
from optbench.models.text.clip import ClipTextOptions
from optbench.records import CaptionedImage, Sizes
from optbench.schema import ValidateOptions
from optbench.storage import files
from optbench.storage.rundir import RunDir
from optbench.training import validation
from optbench.training.paired_loss import ValidationSample, choose_images, paired_losses
from tests.builders.small_training import NETWORK, SmallBase

TIMESTEPS = (50, 450, 850)
OPTIONS = ValidateOptions(
    enabled=True,
    every_n_epochs=2,
    timesteps=TIMESTEPS,
    num_pictures=None,
    dir=None,
    ood_dir=None,
    others_dir=None,
    holdout="none",
)


def samples(*keys: str) -> tuple[ValidationSample, ...]:
    draw = torch.Generator().manual_seed(5)
    return tuple(
        ValidationSample(
            image_key=key,
            split="training",
            caption=f"girl {key}",
            sizes=Sizes(original=(48, 32), crop=(0, 0), target=(48, 32)),
            latents_CHW=torch.randn(3, 4, 6, generator=draw),
        )
        for key in keys
    )


def trained(base: SmallBase) -> LoraNetwork:
    network = build_network(base.lora_targets(), NETWORK, seed=3)
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for group in network.parameter_groups():
            for weight in group.parameters:
                weight.copy_(torch.randn(weight.shape, generator=draw) / 3)
    return network


def losses(base: SmallBase, chosen: tuple[ValidationSample, ...]) -> dict[tuple[str, int], float]:
    found = paired_losses(
        base, chosen, timesteps=TIMESTEPS, text_options=ClipTextOptions(clip_skip=2)
    )
    return {(one.image_key, one.timestep): one.loss for one in found}


def test_every_picture_and_timestep_has_its_own_loss_and_draw() -> None:
    base = SmallBase()
    found = losses(base, samples("a", "b"))
    assert found.keys() == {(key, step) for key in "ab" for step in TIMESTEPS}
    assert len(set(found.values())) == 6
    assert {skip for _, skip in base.asked} == {2}
    assert [one for _, steps in base.draws for one in steps.tolist()] == [*TIMESTEPS] * 2


def test_a_picture_meets_the_same_draws_whatever_else_is_measured() -> None:
    base = SmallBase()
    whole, alone = losses(base, samples("a", "b")), losses(base, samples("a"))
    assert all(whole[place] == loss for place, loss in alone.items())


def test_every_picture_meets_noise_of_its_own() -> None:
    base = SmallBase()
    losses(base, samples("a", "b"))
    (first, _), (second, _) = base.draws
    # One noise for all would make the losses of different pictures move together.
    assert not any(torch.equal(one, other) for one in first for other in second)
    # And one noise for all timesteps those of one image.
    assert len(first.flatten(1).unique(dim=0)) == len(TIMESTEPS)


def test_the_loss_is_the_mean_squared_error_at_the_draw() -> None:
    base = SmallBase()
    found = losses(base, samples("a"))
    (noise_BCHW, timesteps_B), *_ = base.draws
    (sample,) = samples("a")
    latents_BCHW = sample.latents_CHW.expand(3, -1, -1, -1)
    noisy = base.process.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    target = base.process.target(latents_BCHW, noise_BCHW, timesteps_B)
    predicted = base.predict(
        noisy, timesteps_B, base.encode_captions(["girl a"] * 3, ClipTextOptions(clip_skip=2))
    )
    for index, step in enumerate(TIMESTEPS):
        expected = torch.nn.functional.mse_loss(predicted[index], target[index])
        assert found["a", step] == pytest.approx(float(expected), rel=1e-5)


def test_a_network_changes_the_loss_and_nothing_else_is_changed() -> None:
    base = SmallBase()
    network = trained(base)
    torch.manual_seed(1)
    state, before = torch.get_rng_state(), [one.clone() for one in base.conv.parameters()]
    alone = losses(base, samples("a"))
    with network.attached():
        attached = losses(base, samples("a"))
    with network.merged():
        merged = losses(base, samples("a"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, base.conv.parameters(), before))
    assert losses(base, samples("a")) == alone
    for place, loss in attached.items():
        assert loss != pytest.approx(alone[place], rel=1e-3)
        assert merged[place] == pytest.approx(loss, rel=1e-4)  # fp32: sums in another order


def image(key: str) -> CaptionedImage:
    return CaptionedImage(
        path=Path(f"{key}.png"),
        key=key,
        caption=key,
        class_words="",
        repeats=1,
        width=64,
        height=64,
        bucket=(64, 64),
        resized=(64, 64),
    )


def test_the_choice_of_pictures_depends_on_their_content_alone() -> None:
    images = [image(f"{number:02d}") for number in range(12)]
    chosen = {one.key for one in choose_images(images, 5)}
    assert len(chosen) == 5
    assert {one.key for one in choose_images([*images[::-1], images[0]], 5)} == chosen
    assert len(choose_images(images, None)) == 12
    fewer = [one for one in images if one.key != "03"]
    assert len(chosen & {one.key for one in choose_images(fewer, 5)}) >= 4


def examination(folder: Path, base: SmallBase, **changes: object) -> validation.Validator:
    settings: dict[str, object] = {
        "run": RunDir(folder / "run"),
        "base": base,
        "samples": samples("a", "b"),
        "options": OPTIONS,
        "text_options": ClipTextOptions(),
        "cache_dir": folder / "cache",
        **changes,
    }
    return validation.Validator(**settings)  # type: ignore[arg-type]


def test_records_come_from_the_saved_file_once(tmp_path: Path) -> None:
    base = SmallBase()
    network, asked = trained(base), examination(tmp_path, base)
    asked.run.lora_dir.mkdir(parents=True)
    save_lora(asked.run.lora_path(2), network.state_dict(), precision="float", metadata={})
    expected = {}
    with network.merged():
        found = paired_losses(
            base, asked.samples, timesteps=TIMESTEPS, text_options=ClipTextOptions()
        )
        expected = {(one.image_key, one.timestep): one.loss for one in found}
    other = build_network(base.lora_targets(), NETWORK, seed=4)  # has its own weights again after
    own = other.state_dict()
    for _ in range(2):
        validation.validate_missing(asked, other, [2])
    assert all(torch.equal(own[key], value) for key, value in other.state_dict().items())
    rows = files.read_rows(asked.run.validation_path)
    assert {(row["image"], row["timestep"]): row["loss"] for row in rows} == expected
    assert len(rows) == 6
    assert all(row["epoch"] == 2 and row["split"] == "training" for row in rows)
    assert all(row["base_loss"] != row["loss"] for row in rows)
    mean = sum(row["base_loss"] for row in rows) / 6
    found_mean = validation.summary(rows, epoch=2)["validation_loss_base/training"]
    assert found_mean == pytest.approx(mean)
    assert validation.summary(rows, epoch=1) == {}


def test_records_of_other_settings_are_measured_again(tmp_path: Path) -> None:
    base = SmallBase()
    network = trained(base)
    for skip in (1, 2):
        asked = examination(tmp_path, base, text_options=ClipTextOptions(clip_skip=skip))
        asked.run.lora_dir.mkdir(parents=True, exist_ok=True)
        save_lora(asked.run.lora_path(1), network.state_dict(), precision="float", metadata={})
        validation.validate_missing(asked, network, [1])
        assert len(files.read_rows(asked.run.validation_path)) == 6
        assert base.asked[-1][1] == skip


@pytest.mark.parametrize(
    ("num_epochs", "is_last", "expected"),
    [(1, False, []), (1, True, [1]), (5, False, [2, 4]), (5, True, [2, 4, 5]), (4, True, [2, 4])],
)
def test_which_epochs_are_due(num_epochs: int, is_last: bool, expected: list[int]) -> None:
    assert validation.epochs_due(OPTIONS, num_epochs, is_last=is_last) == expected
    last_alone = replace(OPTIONS, every_n_epochs=None)
    assert validation.epochs_due(last_alone, num_epochs, is_last=is_last) == expected[-1:] * is_last


def test_held_out_pictures_that_are_trained_on_are_refused() -> None:
    apart = {
        "validate.dir": [image("b"), image("c")],
        "validate.others_dir": [image("d"), image("c")],
    }
    trained, twice = check_apart(apart, [image("a"), image("b")])
    assert trained.where == "validate.dir"
    assert "trained on, for instance b.png" in trained.found
    assert twice.where == "validate.others_dir"
    assert "c.png" in twice.found


def test_class_images_may_be_trained_on_and_validated_on() -> None:
    of_class = replace(image("c"), is_regularization=True)
    assert check_apart({"validate.others_dir": [of_class]}, [image("a"), of_class]) == []
