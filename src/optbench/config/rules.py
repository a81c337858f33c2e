"""Validate each config group and the rules between groups, without torch.

Types and ranges are on the fields of `schema`; here is what several settings say together.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optbench.data import check_captions_for_length, check_dataset_options
from optbench.errors import Problem, did_you_mean, near_names, without_effect
from optbench.lora.blocks import check_block_sizes, check_block_weights, distinct_weights
from optbench.lora.initial_weights import InitialWeights, check_layers
from optbench.metrics.build import check_metric
from optbench.models.files.families import FAMILIES
from optbench.models.files.lora_sites import lora_sites
from optbench.models.files.processes import NUM_TIMESTEPS, check_loss_for_base
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.models.samplers import SAMPLERS
from optbench.models.text import prompt_grammar
from optbench.optim.recipes import check_recipe
from optbench.optim.schedules import check_schedule
from optbench.schema import (
    BaseOptions,
    DatasetOptions,
    LossOptions,
    LrSchedulerOptions,
    NetworkOptions,
    OptimizerOptions,
    PromptOptions,
    TrainOptions,
    ValidateOptions,
)
from optbench.storage import resources
from optbench.storage.resources import command_line
from optbench.training.rules import check_loss, check_loss_for_data
from optbench.training.trackers import check_tracker


def check_network(options: NetworkOptions) -> list[Problem]:
    """Return everything impossible or without effect in the LoRA's own settings."""
    problems = []
    if options.dora and options.scale_weight_norms is not None:
        problems.append(
            Problem(
                "network.dora and network.scale_weight_norms",
                f"DoRA with a max-norm of {options.scale_weight_norms:g}",
                "one of them: max-norm limits up @ down, which is not DoRA's weight change",
                "write scale_weight_norms=off, or network.dora=false",
            )
        )
    has_conv = options.conv_dim is not None or options.conv_block_dims is not None
    if options.conv_alpha is not None and not has_conv:
        problems.append(
            without_effect(
                "network.conv_alpha",
                options.conv_alpha,
                "network.conv_dim is null",
                "network.conv_dim=8",
            )
        )
    if options.conv_dim is not None and options.conv_alpha is None:
        problems.append(
            Problem(
                "network.conv_alpha",
                f"null while network.conv_dim is {options.conv_dim}",
                "an alpha, since 3x3 layers are scaled by conv_alpha / conv_dim",
                f"add network.conv_alpha={options.conv_dim / 2:g}",
            )
        )
    if not (options.train_unet or options.train_text_encoder):
        problems.append(
            Problem(
                "network.train_unet and network.train_text_encoder",
                "neither unet nor text encoder",
                "at least one part to train",
                "write network.train_unet=true",
            )
        )
    return problems


def check_train(options: TrainOptions) -> list[Problem]:
    """Return everything impossible or without effect in how training computes."""
    problems = []
    if options.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        problems.append(
            Problem(
                "train.attention",
                "xformers, whose package is not installed",
                "sdpa, which comes with torch and is as fast, or the package",
                "write train.attention=sdpa, or pip install the xformers made for this torch",
            )
        )
    if options.dynamo_backend != "inductor" and not options.torch_compile:
        problems.append(
            without_effect(
                "train.dynamo_backend",
                options.dynamo_backend,
                "train.torch_compile is false",
                "train.torch_compile=true",
            )
        )
    return problems


def check_compiling(train: TrainOptions, network: NetworkOptions) -> list[Problem]:
    """Return a problem if the UNet would be compiled anew in every step."""
    names = ("dropout", "rank_dropout", "module_dropout")
    dropped = [f"network.{name}" for name in names if getattr(network, name) > 0]
    if not train.torch_compile or not dropped:
        return []
    return [
        Problem(
            "train.torch_compile",
            f"true with {', '.join(dropped)}",
            "no dropout: a new mask in every step would have the code compiled anew",
            "write train.torch_compile=false, or dropout=none",
        )
    ]


def check_prompts(options: PromptOptions) -> list[Problem]:
    """Return a problem for every prompt that cannot be rendered, and for a set without any."""
    problems = []
    if not options.prompts:
        problems.append(
            Problem(
                "prompts.prompts",
                "no prompt at all",
                "at least one",
                "write prompts=mirelle, or render=off with any prompt set",
            )
        )
    for prompt in options.prompts:
        where = f"prompts.prompts.{prompt.name}"
        problems += check_prompt_text(f"{where}.text", prompt.text)
        problems += check_prompt_text(f"{where}.negative", prompt.negative, is_negative=True)
    return problems


def check_prompt_text(
    where: str, text: str, *, is_negative: bool = False, takes_loras: bool = False
) -> list[Problem]:
    """Return a problem for everything in a prompt that A1111 would read and optbench does not."""
    mistakes = prompt_grammar.mistakes(text, is_negative=is_negative)
    if not mistakes and not is_negative and not takes_loras:
        _, tags = prompt_grammar.without_loras(text)
        mistakes = [
            f"<lora:{tag.name}:{tag.strength:g}>, and each run renders its own LoRA alone"
            for tag in tags
        ]
    return [
        Problem(
            where,
            mistake,
            "a prompt as `optbench.models.text.prompt_grammar` describes it",
            f"take it out; {command_line('render')} puts LoRA files together",
        )
        for mistake in mistakes
    ]


def check_sampler(where: str, name: str) -> list[Problem]:
    """Return a problem if no sampler has a name, with those it may have been meant for."""
    if name in SAMPLERS:
        return []
    near = near_names(name, SAMPLERS, cutoff=0.5)
    return [
        Problem(
            where,
            repr(name),
            f"one of {', '.join(SAMPLERS)}",
            did_you_mean([f"'{where}={sampler}'" for sampler in near])
            or f"write {where}=DDIM, or '{where}=Euler a' in quotes",
        )
    ]


def check_validate(options: ValidateOptions) -> list[Problem]:
    """Return everything impossible in the validation."""
    problems = []
    if not all(timestep < NUM_TIMESTEPS for timestep in options.timesteps):
        problems.append(
            Problem(
                "validate.timesteps",
                str(list(options.timesteps)),
                f"timesteps from 0 to {NUM_TIMESTEPS - 1}",
                "write 'validate.timesteps=[100,300,500,700,900]'",
            )
        )
    shipped = resources.asset("validation")
    for name, images in (
        ("dir", "held-out images"),
        ("ood_dir", "images of what is trained, in outfits and places that are not"),
        ("others_dir", "images of others than what is trained"),
    ):
        folder = getattr(options, name)
        if folder is None:
            continue
        if not Path(folder).is_dir():
            problems.append(
                Problem(
                    f"validate.{name}",
                    f"{folder}, which does not exist",
                    f"a folder of {images}",
                    f"write validate.{name}=FOLDER, relative to {Path.cwd()} or absolute",
                )
            )
        # What ships with optbench is there by default, not because somebody wants it.
        if not options.enabled and Path(folder).parent != shipped:
            problems.append(
                without_effect(
                    f"validate.{name}", folder, "validate.enabled is false", "validate=default"
                )
            )
    return problems


def check_sections(values: Mapping[str, Any], initial: InitialWeights | None) -> list[Problem]:
    """Return everything wrong with the groups of a run's config, each alone and together.

    Args:
        values: The fields of `RunConfig`; None where a group could not be built.
        initial: The LoRA file that the network continues, if it can.
    """
    base: BaseOptions | None = values["base"]
    dataset: DatasetOptions | None = values["dataset"]
    network: NetworkOptions | None = values["network"]
    recipe: OptimizerOptions | None = values["optimizer"]
    lr_scheduler: LrSchedulerOptions | None = values["lr_scheduler"]
    train: TrainOptions | None = values["train"]
    loss: LossOptions | None = values["loss"]
    problems: list[Problem] = []
    alone: tuple[tuple[Callable[[Any], Iterable[Problem]], str], ...] = (
        (check_base, "base"),
        (check_dataset_options, "dataset"),
        (check_network, "network"),
        (check_schedule, "lr_scheduler"),
        (check_train, "train"),
        (check_loss, "loss"),
        (check_prompts, "prompts"),
        (lambda render: check_sampler("render.sampler", render.sampler), "render"),
        (check_validate, "validate"),
        (check_metric, "metric"),
        (check_tracker, "tracker"),
    )
    for check, name in alone:
        if values[name] is not None:
            problems += check(values[name])
    if base and network and initial and not problems:
        # Opens files, so only where they are known to be there.
        problems += check_layers(lora_sites(base), base.name, network, initial)
    if base and train:
        problems += check_clip_skip(base, train.clip_skip)
    if train and network:
        problems += check_compiling(train, network)
    if loss and base:
        problems += check_loss_for_base(base, loss)
    if loss and dataset:
        problems += check_loss_for_data(loss, dataset)
    if train and dataset:
        problems += check_captions_for_length(dataset, num_epochs=train.epochs)
    unet_weights = {1.0}
    family = FAMILIES.get(base.family) if base else None
    if network and family:
        problems += check_block_sizes(network, family.unet_blocks)
        wrong = check_block_weights(network, family.unet_blocks)
        unet_weights = {1.0} if wrong else distinct_weights(network, family.unet_blocks)
        problems += wrong
    if recipe and lr_scheduler:
        problems += check_recipe(
            recipe,
            lr_scheduler=lr_scheduler,
            max_grad_norm=train.max_grad_norm if train else 0.0,
            num_parts=network.train_unet + network.train_text_encoder if network else 0,
            lr_mult=values["lr_mult"] or 1.0,
            unet_weights=unet_weights,
        )
    return problems


def without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    """Return every problem once, in the order of its first appearance."""
    return list(dict.fromkeys(problems))
