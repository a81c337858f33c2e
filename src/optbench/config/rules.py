"""What is impossible or without effect in a config, section by section, without torch."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optbench.config import rules
from optbench.data import check_captions_for_length, check_dataset_options
from optbench.errors import Problem
from optbench.lora.blocks import check_block_sizes, check_block_weights, distinct_weights
from optbench.lora.initial_weights import check_layers, check_start, starting_lora
from optbench.metrics.build import check_metric
from optbench.models.files.processes import check_loss_for_base
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.models.samplers import SAMPLERS, near_names
from optbench.models.text import prompt_grammar
from optbench.optim.recipes import check_recipe
from optbench.optim.schedules import check_schedule
from optbench.schema import (
    NetworkOptions,
    OptimizerOptions,
    PromptOptions,
    RenderOptions,
    TrainOptions,
    ValidateOptions,
)
from optbench.training.rules import check_loss, check_loss_for_data
from optbench.training.trackers import check_tracker

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,+-]*")
_PIXELS_STEP = 8
_SEED_BITS = 63
_IMAGE_SEED_BITS = 64
_NUM_TIMESTEPS = 1000


def check_network(options: NetworkOptions) -> list[Problem]:
    """Return everything impossible or without effect in the LoRA's own settings."""
    problems = [
        *_at_least(1, "network", {"dim": options.dim, "conv_dim": options.conv_dim}),
        # With dim 0 the default alpha, half of it, is 0 too: one mistake, not two.
        *(_above_zero("network.alpha", options.alpha) if options.dim >= 1 else []),
        *_above_zero("network.conv_alpha", options.conv_alpha),
        *_above_zero("network.scale_weight_norms", options.scale_weight_norms),
    ]
    problems += _check_dropouts(options)
    if options.dora and options.scale_weight_norms is not None:
        problems.append(
            Problem(
                "network.dora and network.scale_weight_norms",
                f"network.dora=true with a max-norm of {options.scale_weight_norms:g}",
                "one of them: DoRA's change is not up @ down, whose norm max-norm limits",
                "write scale_weight_norms=off, or network.dora=false",
            )
        )
    has_conv = options.conv_dim is not None or options.conv_block_dims is not None
    if options.conv_alpha is not None and not has_conv:
        problems.append(
            Problem(
                "network.conv_alpha",
                f"{options.conv_alpha:g} while network.conv_dim is null",
                "a conv_dim with it, because alone it has no effect",
                "add network.conv_dim=8, or write network.conv_alpha=null",
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


def _check_dropouts(options: NetworkOptions) -> list[Problem]:
    shares = {
        "dropout": options.dropout,
        "rank_dropout": options.rank_dropout,
        "module_dropout": options.module_dropout,
    }
    return [
        Problem(
            f"network.{name}",
            f"{share:g}",
            "a share from 0 up to, but not including, 1",
            f"write network.{name}=0.1, or 0 for none",
        )
        for name, share in shares.items()
        if not 0 <= share < 1
    ]


def check_train(options: TrainOptions) -> list[Problem]:
    """Return everything impossible in the length, batches and device of the training."""
    counts = {
        "batch_size": options.batch_size,
        "epochs": options.epochs,
        "max_steps": options.max_steps,
        "gradient_accumulation": options.gradient_accumulation,
        "clip_skip": options.clip_skip,
        "num_threads": options.num_threads,
    }
    problems = _at_least(1, "train", counts)
    if not 0 <= options.max_grad_norm < math.inf:
        problems.append(
            Problem(
                "train.max_grad_norm",
                f"{options.max_grad_norm:g}",
                "a finite norm above 0, or 0 for no clipping",
                "write train.max_grad_norm=1",
            )
        )
    if options.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        problems.append(
            Problem(
                "train.attention",
                "xformers, whose package is not installed",
                "sdpa, which torch brings along and is as fast, or the package",
                (
                    "write train.attention=sdpa, or install the xformers that is made for this "
                    "torch: pip install xformers"
                ),
            )
        )
    if options.dynamo_backend != "inductor" and not options.torch_compile:
        problems.append(
            Problem(
                "train.dynamo_backend",
                f"{options.dynamo_backend} while train.torch_compile is false",
                "torch_compile with it, because alone it has no effect",
                "add train.torch_compile=true, or leave train.dynamo_backend out",
            )
        )
    if not _DEVICE.fullmatch(options.device):
        problems.append(
            Problem(
                "train.device",
                repr(options.device),
                "auto, cpu, mps, cuda or cuda:NUMBER",
                "write train.device=auto",
            )
        )
    return problems


def check_compiling(train: TrainOptions, network: NetworkOptions) -> list[Problem]:
    """Return a problem if compiled code would have to be made anew in every step."""
    names = ("dropout", "rank_dropout", "module_dropout")
    dropped = [f"network.{name}" for name in names if getattr(network, name) > 0]
    if not train.torch_compile or not dropped:
        return []
    return [
        Problem(
            "train.torch_compile",
            f"true with {', '.join(dropped)}",
            "no dropouts: what is dropped changes in every step, and with it the code",
            "write train.torch_compile=false, or dropout=none",
        )
    ]


def check_prompts(options: PromptOptions) -> list[Problem]:
    """Return a problem for every prompt that cannot become a file or a picture."""
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
        problems += check_name(where, prompt.name)
        problems += [
            Problem(
                f"{where}.{name}",
                f"{side} pixels",
                f"a multiple of {_PIXELS_STEP} above 0",
                f"write {where}.{name}=512",
            )
            for name, side in (("width", prompt.width), ("height", prompt.height))
            if side < _PIXELS_STEP or side % _PIXELS_STEP
        ]
        problems += check_prompt_text(f"{where}.text", prompt.text)
        problems += check_prompt_text(f"{where}.negative", prompt.negative, is_negative=True)
    return problems


def check_prompt_text(
    where: str, text: str, *, is_negative: bool = False, takes_loras: bool = False
) -> list[Problem]:
    """Return a problem for everything in a prompt that A1111's grammar has and is not read."""
    found = prompt_grammar.mistakes(text, is_negative=is_negative)
    if not found and not is_negative and not takes_loras:
        _, tags = prompt_grammar.without_loras(text)
        found = [
            f"<lora:{tag.name}:{tag.strength:g}>, and each run renders its own LoRA alone"
            for tag in tags
        ]
    return [
        Problem(
            where,
            one,
            "a prompt as `optbench.models.text.prompt_grammar` describes it",
            "take it out; LoRA files are put together by python -m optbench render",
        )
        for one in found
    ]


def check_render(options: RenderOptions) -> list[Problem]:
    """Return everything impossible in how pictures are made."""
    problems = _at_least(1, "render", {"steps": options.steps, "batch_size": options.batch_size})
    problems += _above_zero("render.cfg_scale", options.cfg_scale)
    if (name := options.sampler) not in SAMPLERS:
        problems.append(
            Problem(
                "render.sampler",
                repr(options.sampler),
                f"one of {', '.join(SAMPLERS)}",
                (
                    " or ".join(f"write 'render.sampler={near}'" for near in near_names(name))
                    or "write render.sampler=DDIM, or 'render.sampler=Euler a' in quotes"
                ),
            )
        )
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        problems.append(
            Problem(
                "render.seeds",
                str(list(options.seeds)),
                "at least one seed, and none twice",
                "write 'render.seeds=[112233,445566]'",
            )
        )
    for seed in options.seeds:
        problems += check_seed("render.seeds", seed, bits=_IMAGE_SEED_BITS)
    return problems


def check_validate(options: ValidateOptions) -> list[Problem]:
    """Return everything impossible in how networks are compared."""
    counts = {"num_pictures": options.num_pictures, "every_n_epochs": options.every_n_epochs}
    problems = _at_least(1, "validate", counts)
    steps = options.timesteps
    is_inside = all(0 <= one < _NUM_TIMESTEPS for one in steps)
    if not steps or not is_inside or len(set(steps)) < len(steps):
        problems.append(
            Problem(
                "validate.timesteps",
                str(list(steps)),
                f"at least one from 0 to {_NUM_TIMESTEPS - 1}, and none twice",
                "write 'validate.timesteps=[100,300,500,700,900]'",
            )
        )
    if options.dir is not None and not Path(options.dir).is_dir():
        problems.append(
            Problem(
                "validate.dir",
                f"{options.dir}, where there is none",
                "a folder with pictures that are not trained on",
                f"write validate.dir=FOLDER, relative to {Path.cwd()} or absolute",
            )
        )
    if options.dir is not None and not options.enabled:
        problems.append(
            Problem(
                "validate.dir",
                f"{options.dir} while validate.enabled is false",
                "validation with it, because alone it has no effect",
                "add validate=default, or leave validate.dir out",
            )
        )
    return problems


def check_seed(where: str, seed: int, *, bits: int = _SEED_BITS) -> list[Problem]:
    """Return a problem if a seed does not fit into so many bits."""
    if 0 <= seed < 2**bits:
        return []
    return [
        Problem(
            where,
            str(seed),
            f"a whole number from 0 to 2^{bits} - 1",
            "take a smaller one, for instance 1234",
        )
    ]


def check_name(where: str, name: str) -> list[Problem]:
    """Return a problem if a name cannot be part of a file name everywhere."""
    if _FILE_NAME.fullmatch(name):
        return []
    return [
        Problem(
            where,
            repr(name),
            "letters, digits and _ . , + - only, for it becomes a file's name",
            "choose another name, for instance my-sweep",
        )
    ]


def check_multiplier(where: str, value: float) -> list[Problem]:
    """Return a problem if a factor is not a finite number above 0."""
    return _above_zero(where, value)


def _at_least(least: int, section: str, values: dict[str, int | None]) -> list[Problem]:
    return [
        Problem(
            f"{section}.{name}",
            str(value),
            f"a whole number of {least} or more",
            f"write {section}.{name}={least} or more",
        )
        for name, value in values.items()
        if value is not None and value < least
    ]


def _above_zero(where: str, value: float | None) -> list[Problem]:
    if value is None or (math.isfinite(value) and value > 0):
        return []
    return [Problem(where, f"{value:g}", "a finite number above 0", f"write {where}=1")]


def without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    """Return every problem once, in the order of its first appearance."""
    return list(dict.fromkeys(problems))


def check_sections(values: Mapping[str, Any]) -> list[Problem]:
    """Return what every section that could be built has to say, and the checks across them."""
    single: dict[str, Any] = {
        "base": check_base,
        "dataset": check_dataset_options,
        "network": lambda value: [*rules.check_network(value), *check_start(value)],
        "lr_scheduler": check_schedule,
        "train": rules.check_train,
        "loss": check_loss,
        "prompts": rules.check_prompts,
        "render": rules.check_render,
        "validate": rules.check_validate,
        "metric": check_metric,
        "tracker": check_tracker,
        "lr_mult": lambda value: rules.check_multiplier("lr_mult", value),
        "seed": lambda value: rules.check_seed("seed", value),
        "sweep_name": lambda value: rules.check_name("sweep_name", value),
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
        problems += rules.check_compiling(train, network)
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
