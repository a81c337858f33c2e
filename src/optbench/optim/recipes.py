"""Check a recipe without torch, and list how it departs from plain stepping.

Nothing is ever adjusted to make a recipe fit. What is impossible is refused with the way out; what
a recipe does differently, and what its authors advise against, is printed before the run and
stored with it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Collection

from optbench.errors import Problem
from optbench.records import Part
from optbench.schema import BaseOptions, LrSchedulerOptions, OptimizerOptions

_OWN_RULE = "adafactor"
_WITHOUT_FALL = ("constant", "constant_with_warmup", _OWN_RULE)


def check_recipe(
    options: OptimizerOptions,
    *,
    lr_scheduler: LrSchedulerOptions,
    max_grad_norm: float,
    num_parts: int,
    lr_mult: float,
    unet_weights: Collection[float] = (1.0,),
) -> list[Problem]:
    """Return everything about `options` that cannot work together with the rest of the run.

    Args:
        options: The recipe with the rates of this run.
        lr_scheduler: The schedule; `schedules.check_schedule` checks it on its own.
        max_grad_norm: The clipping; 0 is none.
        num_parts: How many parts of the base are trained: unet, text encoder, or both.
        lr_mult: What every rate is multiplied by.
        unet_weights: What the unet's rate is multiplied by besides, in some of its blocks.
    """
    return [
        *check_package(options),
        *_check_argument_names(options),
        *_check_traits(options),
        *_check_rates(options, lr_mult),
        *_check_group_rates(options, num_parts),
        *_check_block_weights(options, num_parts, unet_weights),
        *_check_schedule_trait(options, lr_scheduler),
        *_check_clip(options, max_grad_norm),
    ]


def requested_rate(options: OptimizerOptions, part: Part) -> float | None:
    """Return the rate a recipe gives to one part, before `lr_mult` and the schedule.

    None where the class finds its own.
    """
    part_rate = options.unet_lr if part == "unet" else options.text_encoder_lr
    return options.lr if part_rate is None else part_rate


def departures(options: OptimizerOptions) -> tuple[str, ...]:
    """Return, as sentences, what a recipe does differently from plain stepping at a given rate."""
    traits = options.traits
    holds_by_sentence = {
        "optimizer.lr is a factor, not a rate: the class estimates its own step size d, and the "
        "real rate is d x lr (recorded as effective_lr)": traits.lr_role == "multiplier",
        "optimizer.lr is null: the class works out a rate for each tensor (recorded as "
        "effective_lr)": traits.lr_role == "automatic",
        "unet and text encoder train at one rate: the class takes no different ones": (
            traits.group_rates == "equal"
        ),
        "a rule of the class takes the place of a falling rate (lr_scheduler=constant)": (
            traits.schedule != "external"
        ),
        "no warm-up from lr_scheduler": traits.warmup == "refused",
        "gradients are not clipped (train.max_grad_norm=0)": traits.clip == "refused",
        "the class limits its own updates, besides train.max_grad_norm": traits.clip == "own",
        "the class is given the loss at every step": traits.stepping == "closure",
        "saved, validated and rendered with the class's averaged weights, which are not the ones "
        "gradients are taken at": traits.weights == "averaged",
        "draws from torch's global generator, which is seeded per run": traits.uses_global_rng,
    }
    return tuple(sentence for sentence, holds in holds_by_sentence.items() if holds)


def unwise(
    options: OptimizerOptions, *, lr_scheduler: LrSchedulerOptions, max_grad_norm: float
) -> tuple[str, ...]:
    """Return, as sentences, what works together in a run although the class is not meant for it."""
    traits, name = options.traits, lr_scheduler.name
    falls, warms_up = name not in _WITHOUT_FALL, lr_scheduler.warmup_steps > 0
    holds_by_sentence = {
        f"lr_scheduler={name} changes nothing: the class works out its own rates": (
            traits.lr_role == "automatic" and (falls or warms_up)
        ),
        f"lr_scheduler={name} lowers the rate besides the class's own rule; "
        "lr_scheduler=constant is what its authors advise": (
            traits.lr_role != "automatic" and traits.schedule != "external" and falls
        ),
        f"lr_scheduler.warmup_steps={lr_scheduler.warmup_steps:g} comes besides the class's own "
        "warm-up, optimizer.args.warmup_steps": warms_up and "warmup_steps" in options.args,
        f"gradients are clipped to a norm of {max_grad_norm:g}, and the class limits its updates "
        "besides; train.max_grad_norm=0 is what its authors advise": (
            traits.clip == "own" and max_grad_norm > 0
        ),
    }
    return tuple(sentence for sentence, holds in holds_by_sentence.items() if holds)


def rate_notices(
    options: OptimizerOptions, base: BaseOptions, *, lr_mult: float
) -> tuple[str, ...]:
    """Return a sentence if a base's rates are not the usual ones, and no race found the recipe's.

    Nothing for a class that works out its own rates, or where other rates are tried (`lr_mult`).
    """
    is_raced = base.lr_scales.get(options.name) is not None
    if is_raced or lr_mult != 1 or base.lr_scale == 1 or options.traits.lr_role == "automatic":
        return ()
    usual = (
        f"{base.lr_scale:g} times the recipe's usual one (base.lr_scale)"
        if options.traits.lr_role == "manual"
        else "the recipe's usual factor"
    )
    return (
        f"no race has found its rate on base={base.name}: by default it is {usual}; "
        f"-m sweep=race optimizer={options.name} finds its own",
    )


def check_package(options: OptimizerOptions) -> list[Problem]:
    """Return a problem if the package of a recipe's class is not installed; imports nothing."""
    root, _, rest = options.target.partition(".")
    if not root or not rest:
        return [
            Problem(
                f"_target_ of recipe {options.name}",
                f"the class {options.target!r}",
                "a dotted path, for instance torch.optim.AdamW",
                "write the path as you would import it",
            )
        ]
    if root in sys.stdlib_module_names:
        return [
            Problem(
                f"_target_ of recipe {options.name}",
                f"{options.target}, of Python's own library, which has no optimizer",
                "a torch.optim.Optimizer class, for instance torch.optim.AdamW",
                "do not use this recipe, unless you know who wrote it and why it names that",
            )
        ]
    if importlib.util.find_spec(root) is not None:
        return []
    return [missing_package(options)]


def missing_package(options: OptimizerOptions) -> Problem:
    """Return the problem of a recipe whose package is not installed."""
    return Problem(
        f"recipe {options.name}",
        f"no package {options.package}, which has {options.target}",
        "it to be installed",
        (
            f"pip install {_installable(options.package)}; or leave the recipe out: "
            f"'optimizer=glob(*,exclude=[dadaptation,{options.name}])'"
        ),
    )


def _installable(package: str) -> str:
    """Return what to give pip: our extra of that name, which knows the version, if there is one."""
    try:
        extras = importlib.metadata.metadata("optbench").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        extras = []  # run from a checkout that is not installed
    return f"'optbench[{package}]'" if package in extras else package


def _check_argument_names(options: OptimizerOptions) -> list[Problem]:
    instead = {"lr": "optimizer.lr", "params": "nothing: the network gives them"}
    refused = [
        Problem(
            f"optimizer.args.{name} (recipe {options.name})",
            f"the argument {name}={options.args[name]}",
            f"it to be left out: {reason}",
            f"leave out optimizer.args.{name}",
        )
        for name, reason in options.refused_args.items()
        if name in options.args
    ]
    return refused + [
        Problem(
            f"optimizer.args.{name} (recipe {options.name})",
            f"the argument {name!r}",
            "only arguments that no other setting gives",
            f"remove it and use {instead[name]}",
        )
        for name in options.args
        if name in instead
    ]


def _check_traits(options: OptimizerOptions) -> list[Problem]:
    traits = options.traits
    is_automatic = traits.lr_role == "automatic"
    fits = is_automatic == (traits.effective_lr == "relative")
    if fits and not (is_automatic and traits.schedule != "own"):
        return []
    return [
        Problem(
            f"traits of recipe {options.name}",
            (
                f"lr_role={traits.lr_role}, schedule={traits.schedule} and "
                f"effective_lr={traits.effective_lr}"
            ),
            ("schedule: own and effective_lr: relative with lr_role: automatic, and only with it"),
            (
                "say automatic for a class that finds its own rate (Adafactor's relative_step), "
                "else manual or multiplier"
            ),
        )
    ]


def _check_rates(options: OptimizerOptions, lr_mult: float) -> list[Problem]:
    rates = {"lr": options.lr, "unet_lr": options.unet_lr}
    rates["text_encoder_lr"] = options.text_encoder_lr
    if options.traits.lr_role == "automatic":
        given = {f"optimizer.{name}": rate for name, rate in rates.items() if rate is not None}
        if lr_mult != 1:
            given["lr_mult"] = lr_mult
        return [
            Problem(
                f"{key} (recipe {options.name})",
                f"{value:g}",
                "none, because this class finds its own rates and would ignore it",
                (
                    "leave it out; the smallest rate of adafactor_auto is the second value of "
                    "'optimizer.args.eps=[1e-30,1e-3]'"
                ),
            )
            for key, value in given.items()
        ]
    if options.lr is not None:
        return []
    return [
        Problem(
            f"optimizer.lr (recipe {options.name})",
            "no rate",
            "one, because this class does not find its own",
            "write optimizer.lr=1e-4, or 1 for a class that estimates d",
        )
    ]


def _check_group_rates(options: OptimizerOptions, num_parts: int) -> list[Problem]:
    unet, text_encoder = requested_rate(options, "unet"), requested_rate(options, "text_encoder")
    if options.traits.group_rates == "free" or num_parts < 2 or unet == text_encoder:
        return []
    if unet is None or text_encoder is None:
        return []  # _check_rates says it
    return [
        Problem(
            f"optimizer.unet_lr and optimizer.text_encoder_lr (recipe {options.name})",
            f"{unet:g} for the unet and {text_encoder:g} for the text encoder",
            (
                "one rate for both, because this class estimates one step size for "
                "everything: different rates raise at its first step, or it silently uses the "
                "first group's"
            ),
            (
                "set both to the same value or to null, train one part only "
                "(network.train_text_encoder=false), or use a recipe with group_rates: free"
            ),
        )
    ]


def _check_block_weights(
    options: OptimizerOptions, num_parts: int, weights: Collection[float]
) -> list[Problem]:
    """Return a problem where blocks cannot have rates of their own."""
    is_automatic = options.traits.lr_role == "automatic"
    is_equal = options.traits.group_rates == "equal"
    is_uneven = len(weights) > 1 or (set(weights) != {1.0} and num_parts > 1)
    if not (set(weights) != {1.0} and is_automatic) and not (is_uneven and is_equal):
        return []
    reason = "it finds its own rates" if is_automatic else "it takes one rate for everything"
    shown = ", ".join(f"{weight:g}" for weight in sorted(weights))
    return [
        Problem(
            (
                "network.down_lr_weight, network.mid_lr_weight and network.up_lr_weight "
                f"(recipe {options.name})"
            ),
            f"the weights {shown} for blocks of the unet",
            f"weights of 0 (a block without a LoRA) and 1 only with this class: {reason}",
            "write 0 or 1 for each block, or use a recipe with group_rates: free",
        )
    ]


def _check_schedule_trait(
    options: OptimizerOptions, lr_scheduler: LrSchedulerOptions
) -> list[Problem]:
    problems = []
    if options.traits.lr_role != "automatic" and lr_scheduler.name == _OWN_RULE:
        problems.append(
            Problem(
                f"lr_scheduler (recipe {options.name})",
                f"the schedule {lr_scheduler.name}",
                "a class with a rule of its own; this one would stay at one rate",
                "write lr_scheduler=constant for that, or optimizer=adafactor_auto",
            )
        )
    if options.traits.warmup == "refused" and lr_scheduler.warmup_steps > 0:
        problems.append(
            Problem(
                f"lr_scheduler.warmup_steps (recipe {options.name})",
                f"a warm-up of {lr_scheduler.warmup_steps:g}",
                "none, because this class cannot take a rate of 0, its first",
                "write lr_scheduler.warmup_steps=0",
            )
        )
    return problems


def _check_clip(options: OptimizerOptions, max_grad_norm: float) -> list[Problem]:
    if options.traits.clip != "refused" or max_grad_norm == 0:
        return []
    return [
        Problem(
            f"train.max_grad_norm (recipe {options.name})",
            f"gradients clipped to a norm of {max_grad_norm:g}",
            ("0 (no clipping): the recipe says that this class cannot have it"),
            "write train.max_grad_norm=0, for the whole sweep if the runs are to be compared",
        )
    ]
