"""Loss settings that are impossible or would do nothing are refused; kohya's defaults fill in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optbench.config.build import build_config
from optbench.errors import ConfigError
from optbench.models.files.processes import check_loss, check_loss_for_base
from optbench.schema import BaseOptions, LossOptions
from tests.config.test_build import config_of, default_tree, places

pytestmark = pytest.mark.usefixtures("fake_assets")


def loss_of(*overrides: str) -> LossOptions:
    return config_of(*overrides).loss


def test_defaults_are_a_plain_loss_on_plain_noise() -> None:
    loss = loss_of()
    assert (loss.loss_type, loss.prior_loss_weight) == ("l2", 1.0)
    assert (loss.min_timestep, loss.max_timestep) == (0, None)
    others = {
        name: getattr(loss, name)
        for name in LossOptions.__dataclass_fields__
        if name not in ("loss_type", "prior_loss_weight", "min_timestep")
    }
    assert set(others.values()) == {None, False}


def test_kohyas_defaults_come_with_what_they_belong_to() -> None:
    loss = loss_of("loss.loss_type=huber")
    assert (loss.huber_schedule, loss.huber_c, loss.huber_scale) == ("snr", 0.1, None)
    loss = loss_of("loss=huber", "loss.huber_schedule=exponential")
    assert (loss.huber_c, loss.huber_scale) == (0.1, 1.0)
    assert loss_of("loss.multires_noise_iterations=6").multires_noise_discount == 0.3


def test_presets() -> None:
    assert loss_of("loss=min_snr").min_snr_gamma == 5
    multires = loss_of("loss=multires")
    assert (multires.multires_noise_iterations, multires.multires_noise_discount) == (8, 0.3)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"loss_type": "l3"}, "loss_type"),
        ({"huber_c": 0.1}, "huber_c"),
        ({"huber_schedule": "constant"}, "huber_schedule"),
        ({"huber_scale": 2.0}, "huber_scale"),
        ({"loss_type": "l1", "huber_c": 0.1}, "huber_c"),
        ({"loss_type": "huber", "huber_scale": 2.0}, "huber_scale"),
        ({"loss_type": "huber", "huber_c": 0.0}, "huber_c"),
        ({"loss_type": "huber", "huber_c": None}, "huber_c"),
        ({"loss_type": "huber", "huber_schedule": "constant", "huber_scale": 2.0}, ""),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma"),
        ({"min_snr_gamma": 5}, ""),
        ({"v_pred_like_loss": -1.0}, "v_pred_like_loss"),
        ({"noise_offset": 0.0}, "noise_offset"),
        ({"noise_offset_random_strength": True}, "noise_offset_random_strength"),
        ({"noise_offset_random_strength": True, "noise_offset": 0.1}, ""),
        ({"adaptive_noise_scale": 0.1}, "adaptive_noise_scale"),
        ({"adaptive_noise_scale": 0.0, "noise_offset": 0.1}, "adaptive_noise_scale"),
        ({"adaptive_noise_scale": -0.1, "noise_offset": 0.1}, ""),
        ({"multires_noise_iterations": 0}, "multires_noise_iterations"),
        ({"multires_noise_discount": 0.3}, "multires_noise_discount"),
        ({"multires_noise_iterations": 6, "multires_noise_discount": None},
         "multires_noise_discount"),
        ({"ip_noise_gamma_random_strength": True}, "ip_noise_gamma_random_strength"),
        ({"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True}, ""),
        ({"prior_loss_weight": 0.0}, "prior_loss_weight"),
        ({"min_timestep": -1}, "min_timestep and loss.max_timestep"),
        ({"min_timestep": 1000}, "min_timestep and loss.max_timestep"),
        ({"min_timestep": 5, "max_timestep": 5}, "min_timestep and loss.max_timestep"),
        ({"max_timestep": 1001}, "min_timestep and loss.max_timestep"),
        ({"min_timestep": 999, "max_timestep": 1000}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_one_setting(settings: dict[str, Any], where: str) -> None:
    tree = default_tree().copy()
    for name, value in settings.items():
        tree.loss[name] = value
    if not where:
        build_config(tree)
        return
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    assert [problem.where for problem in caught.value.problems] == [f"loss.{where}"]


def test_what_only_one_kind_of_prediction_knows() -> None:
    every = loss_of()

    def refused(kind: Any, **changes: Any) -> list[str]:
        options = LossOptions(
            **{name: getattr(every, name) for name in LossOptions.__dataclass_fields__} | changes
        )
        return [problem.where for problem in check_loss(options, kind)]

    v_only: dict[str, Any] = {"zero_terminal_snr": True, "scale_v_pred_loss_like_noise_pred": True}
    assert refused("epsilon", **v_only) == [f"loss.{name}" for name in v_only]
    assert refused("v_prediction", **v_only) == []
    assert refused("epsilon", v_pred_like_loss=1.0) == []
    assert refused("v_prediction", v_pred_like_loss=1.0) == ["loss.v_pred_like_loss"]


def test_a_bases_own_files_say_what_it_predicts(fake_assets: Path) -> None:
    config_of("loss.zero_terminal_snr=true")  # nothing is known yet: looked at once it is loaded
    scheduler = fake_assets / "tiny" / "scheduler"
    scheduler.mkdir()
    file = scheduler / "scheduler_config.json"
    for kind, expected in (("epsilon", ["loss.zero_terminal_snr"]), ("v_prediction", [])):
        file.write_text(json.dumps({"prediction_type": kind}))
        if expected:
            assert places("loss.zero_terminal_snr=true") == expected
        else:
            config_of("loss.zero_terminal_snr=true")


def test_a_single_file_says_by_an_empty_tensor_that_it_predicts_v(tmp_path: Path) -> None:
    every = replace(loss_of(), zero_terminal_snr=True)

    def refused(path: Path) -> list[str]:
        base = BaseOptions(
            name="x",
            family="sdxl",
            path=str(path),
            vae=None,
            v_parameterization=None,
            lr_scale=1,
            lr_scales={},
        )
        return [problem.where for problem in check_loss_for_base(base, every)]

    plain, v_pred = tmp_path / "plain.safetensors", tmp_path / "v.safetensors"
    save_file({"x": torch.zeros(1)}, plain)
    save_file({"x": torch.zeros(1), "v_pred": torch.zeros(0)}, v_pred)
    assert refused(plain) == ["loss.zero_terminal_snr"]
    assert refused(v_pred) == []
    assert refused(tmp_path / "gone.safetensors") == []  # said where the base is looked at
