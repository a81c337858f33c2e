"""What is impossible or without effect in a config, section by section, without torch."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable
from pathlib import Path

from optbench import prompt_grammar
from optbench.errors import Problem
from optbench.options import (
    NetworkOptions,
    PromptOptions,
    RenderOptions,
    TrainOptions,
    ValidateOptions,
)
from optbench.samplers import SAMPLERS, near_names

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
                found=f"network.dora=true with a max-norm of {options.scale_weight_norms:g}",
                expected="one of them: DoRA's change is not up @ down, whose norm max-norm limits",
                where="network.dora and network.scale_weight_norms",
                fix="write scale_weight_norms=off, or network.dora=false",
            )
        )
    has_conv = options.conv_dim is not None or options.conv_block_dims is not None
    if options.conv_alpha is not None and not has_conv:
        problems.append(
            Problem(
                found=f"{options.conv_alpha:g} while network.conv_dim is null",
                expected="a conv_dim with it, because alone it has no effect",
                where="network.conv_alpha",
                fix="add network.conv_dim=8, or write network.conv_alpha=null",
            )
        )
    if options.conv_dim is not None and options.conv_alpha is None:
        problems.append(
            Problem(
                found=f"null while network.conv_dim is {options.conv_dim}",
                expected="an alpha, since 3x3 layers are scaled by conv_alpha / conv_dim",
                where="network.conv_alpha",
                fix=f"add network.conv_alpha={options.conv_dim / 2:g}",
            )
        )
    if not (options.train_unet or options.train_text_encoder):
        problems.append(
            Problem(
                found="neither unet nor text encoder",
                expected="at least one part to train",
                where="network.train_unet and network.train_text_encoder",
                fix="write network.train_unet=true",
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
            found=f"{share:g}",
            expected="a share from 0 up to, but not including, 1",
            where=f"network.{name}",
            fix=f"write network.{name}=0.1, or 0 for none",
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
                found=f"{options.max_grad_norm:g}",
                expected="a finite norm above 0, or 0 for no clipping",
                where="train.max_grad_norm",
                fix="write train.max_grad_norm=1",
            )
        )
    if options.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        problems.append(
            Problem(
                found="xformers, whose package is not installed",
                expected="sdpa, which torch brings along and is as fast, or the package",
                where="train.attention",
                fix="write train.attention=sdpa, or install the xformers that is made for this "
                "torch: pip install xformers",
            )
        )
    if options.dynamo_backend != "inductor" and not options.torch_compile:
        problems.append(
            Problem(
                found=f"{options.dynamo_backend} while train.torch_compile is false",
                expected="torch_compile with it, because alone it has no effect",
                where="train.dynamo_backend",
                fix="add train.torch_compile=true, or leave train.dynamo_backend out",
            )
        )
    if not _DEVICE.fullmatch(options.device):
        problems.append(
            Problem(
                found=repr(options.device),
                expected="auto, cpu, mps, cuda or cuda:NUMBER",
                where="train.device",
                fix="write train.device=auto",
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
            found=f"true with {', '.join(dropped)}",
            expected="no dropouts: what is dropped changes in every step, and with it the code",
            where="train.torch_compile",
            fix="write train.torch_compile=false, or dropout=none",
        )
    ]


def check_prompts(options: PromptOptions) -> list[Problem]:
    """Return a problem for every prompt that cannot become a file or a picture."""
    problems = []
    if not options.prompts:
        problems.append(
            Problem(
                found="no prompt at all",
                expected="at least one",
                where="prompts.prompts",
                fix="write prompts=mirelle, or render=off with any prompt set",
            )
        )
    for prompt in options.prompts:
        where = f"prompts.prompts.{prompt.name}"
        problems += check_name(where, prompt.name)
        problems += [
            Problem(
                found=f"{side} pixels",
                expected=f"a multiple of {_PIXELS_STEP} above 0",
                where=f"{where}.{name}",
                fix=f"write {where}.{name}=512",
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
            found=one,
            expected="a prompt as `optbench.prompt_grammar` describes it",
            where=where,
            fix="take it out; LoRA files are put together by python -m optbench.render",
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
                found=repr(options.sampler),
                expected=f"one of {', '.join(SAMPLERS)}",
                where="render.sampler",
                fix=" or ".join(f"write 'render.sampler={near}'" for near in near_names(name))
                or "write render.sampler=DDIM, or 'render.sampler=Euler a' in quotes",
            )
        )
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        problems.append(
            Problem(
                found=str(list(options.seeds)),
                expected="at least one seed, and none twice",
                where="render.seeds",
                fix="write 'render.seeds=[112233,445566]'",
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
                found=str(list(steps)),
                expected=f"at least one from 0 to {_NUM_TIMESTEPS - 1}, and none twice",
                where="validate.timesteps",
                fix="write 'validate.timesteps=[100,300,500,700,900]'",
            )
        )
    if options.dir is not None and not Path(options.dir).is_dir():
        problems.append(
            Problem(
                found=f"{options.dir}, where there is none",
                expected="a folder with pictures that are not trained on",
                where="validate.dir",
                fix=f"write validate.dir=FOLDER, relative to {Path.cwd()} or absolute",
            )
        )
    if options.dir is not None and not options.enabled:
        problems.append(
            Problem(
                found=f"{options.dir} while validate.enabled is false",
                expected="validation with it, because alone it has no effect",
                where="validate.dir",
                fix="add validate=default, or leave validate.dir out",
            )
        )
    return problems


def check_seed(where: str, seed: int, *, bits: int = _SEED_BITS) -> list[Problem]:
    """Return a problem if a seed does not fit into so many bits."""
    if 0 <= seed < 2**bits:
        return []
    return [
        Problem(
            found=str(seed),
            expected=f"a whole number from 0 to 2^{bits} - 1",
            where=where,
            fix="take a smaller one, for instance 1234",
        )
    ]


def check_name(where: str, name: str) -> list[Problem]:
    """Return a problem if a name cannot be part of a file name everywhere."""
    if _FILE_NAME.fullmatch(name):
        return []
    return [
        Problem(
            found=repr(name),
            expected="letters, digits and _ . , + - only, for it becomes a file's name",
            where=where,
            fix="choose another name, for instance my-sweep",
        )
    ]


def check_multiplier(where: str, value: float) -> list[Problem]:
    """Return a problem if a factor is not a finite number above 0."""
    return _above_zero(where, value)


def _at_least(least: int, section: str, values: dict[str, int | None]) -> list[Problem]:
    return [
        Problem(
            found=str(value),
            expected=f"a whole number of {least} or more",
            where=f"{section}.{name}",
            fix=f"write {section}.{name}={least} or more",
        )
        for name, value in values.items()
        if value is not None and value < least
    ]


def _above_zero(where: str, value: float | None) -> list[Problem]:
    if value is None or (math.isfinite(value) and value > 0):
        return []
    return [
        Problem(
            found=f"{value:g}",
            expected="a finite number above 0",
            where=where,
            fix=f"write {where}=1",
        )
    ]


def without_repeats(problems: Iterable[Problem]) -> list[Problem]:
    """Return every problem once, in the order of its first appearance."""
    return list(dict.fromkeys(problems))
