"""What the sections of a config have to say, each alone and across each other, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optbench import checks
from optbench.basefiles.checking import check_base, check_clip_skip
from optbench.blocks import check_block_sizes, check_block_weights, distinct_weights
from optbench.continuing import starting_lora
from optbench.dataset import check_captions_for_length, check_dataset_options
from optbench.errors import Problem
from optbench.fitting import check_start
from optbench.loss_checks import check_loss, check_loss_for_base, check_loss_for_data
from optbench.metrics.building import check_metric
from optbench.offered import check_layers
from optbench.options import NetworkOptions, OptimizerOptions, TrainOptions
from optbench.recipes import check_recipe
from optbench.schedules import check_schedule
from optbench.trackers import check_tracker


def check_sections(values: Mapping[str, Any]) -> list[Problem]:
    """Return what every section that could be built has to say, and the checks across them."""
    single: dict[str, Any] = {
        "base": check_base,
        "dataset": check_dataset_options,
        "network": lambda value: [*checks.check_network(value), *check_start(value)],
        "lr_scheduler": check_schedule,
        "train": checks.check_train,
        "loss": check_loss,
        "prompts": checks.check_prompts,
        "render": checks.check_render,
        "validate": checks.check_validate,
        "metric": check_metric,
        "tracker": check_tracker,
        "lr_mult": lambda value: checks.check_multiplier("lr_mult", value),
        "seed": lambda value: checks.check_seed("seed", value),
        "sweep_name": lambda value: checks.check_name("sweep_name", value),
    }
    problems: list[Problem] = []
    for name, check in single.items():
        if values[name] is not None:
            problems += check(values[name])
    if values["base"] is not None and values["network"] is not None and not problems:
        start = starting_lora(values["network"])
        problems += check_layers(values["base"], values["network"], start) if start else []
    recipe, network, train = values["optimizer"], values["network"], values["train"]
    if isinstance(train, TrainOptions) and values["base"] is not None:
        problems += check_clip_skip(values["base"], train.clip_skip)
    if isinstance(train, TrainOptions) and isinstance(network, NetworkOptions):
        problems += checks.check_compiling(train, network)
    if values["loss"] is not None and values["base"] is not None:
        problems += check_loss_for_base(values["base"], values["loss"])
    if values["loss"] is not None and values["dataset"] is not None:
        problems += check_loss_for_data(values["loss"], values["dataset"])
    if isinstance(train, TrainOptions) and values["dataset"] is not None:
        problems += check_captions_for_length(values["dataset"], num_epochs=train.epochs)
    unet_weights = {1.0}
    if isinstance(network, NetworkOptions) and values["base"] is not None:
        family = values["base"].family
        problems += check_block_sizes(network, family=family)
        wrong = check_block_weights(network, family=family)
        unet_weights = {1.0} if wrong else distinct_weights(network, family=family)
        problems += wrong
    if isinstance(recipe, OptimizerOptions) and values["lr_scheduler"] is not None:
        problems += check_recipe(
            recipe,
            lr_scheduler=values["lr_scheduler"],
            max_grad_norm=train.max_grad_norm if isinstance(train, TrainOptions) else 0.0,
            num_parts=_num_parts(network),
            lr_mult=1.0 if values["lr_mult"] is None else values["lr_mult"],
            unet_weights=unet_weights,
        )
    return problems


def _num_parts(network: NetworkOptions | None) -> int:
    return 0 if network is None else int(network.train_unet) + int(network.train_text_encoder)
