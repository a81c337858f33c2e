"""Build the optimizer a recipe names and prove that it is the requested one.

No optimizer is named here: a class comes from its recipe's dotted path, and what is special about
it from the recipe's traits. What was built is read back: the class, every argument, every rate.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor

from optbench.errors import (
    ConfigError,
    MissingPackageError,
    OptbenchError,
    Problem,
    did_you_mean,
    near_names,
)
from optbench.optim.arguments import check_kind, typed
from optbench.optim.recipes import check_package, missing_package, requested_rate
from optbench.optim.schedules import check_schedule, multiplier, num_warmup_steps
from optbench.optim.stepping import RATE_KEYS, BuiltOptimizer
from optbench.records import ParameterGroup, Part
from optbench.schema import LrSchedulerOptions, OptimizerOptions
from optbench.terminal import quiet_imports

# Where an argument is stored that is nowhere under its name: bitsandbytes puts the decay of every
# moment into betas.
_STORED_IN = {"momentum": ("betas", 0)}
# What constructors raise of arguments they do not take.
_REFUSALS = (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


def build_optimizer(
    options: OptimizerOptions,
    groups: Sequence[ParameterGroup],
    *,
    lr_mult: float,
    lr_scheduler: LrSchedulerOptions,
    total_steps: int,
) -> BuiltOptimizer:
    """Return the optimizer a recipe names over a network's groups, read back and as requested.

    Args:
        options: The recipe with the rates of this run.
        groups: The trained parameters by rate; parts that are not trained are absent.
        lr_mult: Every rate is multiplied by it.
        lr_scheduler: How the rates change over the run.
        total_steps: The updates of the whole run.

    Raises:
        ConfigError: If a rate, an argument or the schedule cannot be had, all listed together.
        MissingPackageError: If the class's package is not installed.
        OptbenchError: If what was built is not what was requested.
    """
    rates = {
        group.name: _times(_times(requested_rate(options, group.part), lr_mult), group.lr_weight)
        for group in groups
    }
    problems = check_package(options)
    if problems:
        raise MissingPackageError(*problems)
    problems = [
        *_check_groups(options, groups, rates),
        *check_arguments(options),
        *check_schedule(lr_scheduler, total_steps=total_steps),
    ]
    if problems:
        raise ConfigError(*problems)
    shared = as_arguments(options.group_args)
    torch_groups: list[dict[str, Any]] = [
        {"params": list(group.parameters), "lr": rates[group.name], "name": group.name, **shared}
        for group in groups
    ]
    optimizer, output = _construct(options, torch_groups, lr=_times(options.lr, lr_mult))
    description = _read_back(optimizer, options, rates) | {"said": output}
    description["schedule"] = {
        **{name: value for name, value in asdict(lr_scheduler).items() if value is not None},
        "num_warmup_steps": num_warmup_steps(lr_scheduler, total_steps),
        "total_steps": total_steps,
    }
    return BuiltOptimizer(
        optimizer,
        options=options,
        schedule=lambda step_index: multiplier(lr_scheduler, step_index, total_steps),
        description=description,
    )


def check_arguments(options: OptimizerOptions) -> list[Problem]:
    """Return a problem for each argument or trait that does not fit the class; imports it."""
    where = f"_target_ of recipe {options.name}"
    try:
        cls = _named_class(options)
    except AttributeError:
        return [
            Problem(
                where,
                f"no {options.target.rpartition('.')[2]} in that module",
                f"the class {options.target}",
                f"correct the path, or install a version of {options.package} that has it",
            )
        ]
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        return [
            Problem(
                where,
                f"{options.target}, which is no torch.optim.Optimizer",
                "an optimizer class",
                "name the class itself, not a function that makes it",
            )
        ]
    problems = []
    has_modes = all(callable(getattr(cls, mode, None)) for mode in ("train", "eval"))
    if has_modes != (options.traits.weights == "averaged"):
        problems.append(
            Problem(
                f"traits of recipe {options.name}",
                (
                    f"weights: {options.traits.weights}, and a class "
                    + ("with" if has_modes else "without")
                    + " train() and eval()"
                ),
                "weights: averaged for a class with both, else live",
                "correct the trait: weights: " + ("averaged" if has_modes else "live"),
            )
        )
    parameters = _parameters(cls)
    allowed = sorted(parameters.keys() - {"self", "params", "lr"})
    for name, value in options.args.items():
        where = f"optimizer.args.{name}"
        if name in allowed:
            default = parameters[name].default
            is_known = default is not None and default is not inspect.Parameter.empty
            wrong = check_kind(where, value, default) if is_known else []
            problems += [replace(one, where=f"{where} (recipe {options.name})") for one in wrong]
            continue
        near = did_you_mean([f"optimizer.args.{other}" for other in near_names(name, allowed)])
        problems.append(
            Problem(
                f"{where} (recipe {options.name})",
                f"the argument {name!r}, which {options.target} does not take",
                f"one of {', '.join(allowed)}",
                near or f"leave {where} out",
            )
        )
    return problems


def try_recipe(
    options: OptimizerOptions,
    *,
    parts: Sequence[Part],
    lr_mult: float,
    lr_scheduler: LrSchedulerOptions,
    total_steps: int,
) -> list[Problem]:
    """Return what `build_optimizer` would refuse, by building the class over tiny parameters."""
    groups = [
        ParameterGroup(
            name=part, part=part, lr_weight=1.0, parameters=[torch.nn.Parameter(torch.zeros(4, 4))]
        )
        for part in parts
    ]
    try:
        build_optimizer(
            options, groups, lr_mult=lr_mult, lr_scheduler=lr_scheduler, total_steps=total_steps
        )
    except OptbenchError as error:
        return list(error.problems)
    return []


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class's constructor takes; through **kwargs also what its parents' take."""
    named: dict[str, inspect.Parameter] = {}
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for parameter in parameters:
            if parameter.kind in kinds:
                named.setdefault(parameter.name, parameter)
        # A class that takes anything and hands it to nobody would swallow a misspelt argument.
        if inspect.Parameter.VAR_KEYWORD not in [parameter.kind for parameter in parameters]:
            break
        if ancestor is torch.optim.Optimizer:
            break
    return named


def as_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's arguments as a class wants them: every YAML list becomes a tuple."""
    return {name: _tuples(value) for name, value in args.items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_tuples(item) for item in value)
    return value


def _named_class(options: OptimizerOptions) -> Any:
    module_name, _, class_name = options.target.rpartition(".")
    try:
        # Some packages greet whoever imports them.
        with quiet_imports(), contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(missing_package(options)) from error
    return getattr(module, class_name)


def _check_groups(
    options: OptimizerOptions,
    groups: Sequence[ParameterGroup],
    rates: Mapping[str, float | None],
) -> list[Problem]:
    problems = []
    where = f"optimizer.{{}} (recipe {options.name})"
    empty = [group.name for group in groups if not group.parameters]
    if not groups or empty:
        problems.append(
            Problem(
                "network",
                f"no parameters in {', '.join(empty) or 'all'}",
                "at least one trained parameter in every part that is trained",
                "train a part that has layers: network.train_unet=true",
            )
        )
    problems += [
        Problem(
            where.format(f"{group.part}_lr"),
            f"a rate of {rate:g} for {group.name}",
            "a finite rate above 0; several classes move a group of rate 0 all the same",
            f"switch the part off instead: network.train_{group.part}=false",
        )
        for group in groups
        if (rate := rates[group.name]) is not None and not (math.isfinite(rate) and rate > 0)
    ]
    if options.traits.group_rates == "equal" and len(set(rates.values())) > 1:
        problems.append(
            Problem(
                where.format("unet_lr and optimizer.text_encoder_lr"),
                ", ".join(f"{rate:g} for {name}" for name, rate in rates.items()),
                "one rate, because this class estimates one step size for everything",
                "set both to the same value or to null",
            )
        )
    return problems


def _construct(
    options: OptimizerOptions, torch_groups: list[dict[str, Any]], *, lr: float | None
) -> tuple[torch.optim.Optimizer, str]:
    """Return the built class and what it printed or warned about while being built."""
    cls = _named_class(options)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            optimizer = cls(torch_groups, lr=lr, **as_arguments(options.args))
    except _REFUSALS as error:
        said = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        raise ConfigError(_refused_argument(cls, torch_groups, options, lr, said)) from error
    lines = [printed.getvalue().strip(), *(str(warning.message) for warning in caught)]
    return cast(torch.optim.Optimizer, optimizer), "\n".join(filter(None, lines))


def _refused_argument(
    cls: Any,
    torch_groups: Sequence[Mapping[str, Any]],
    options: OptimizerOptions,
    lr: float | None,
    said: str,
) -> Problem:
    """Return the problem of a class that refuses its arguments: the one without which it builds."""
    parameters = _parameters(cls)
    for name, value in options.args.items():
        others = {other: item for other, item in options.args.items() if other != name}
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                cls([dict(group) for group in torch_groups], lr=lr, **as_arguments(others))
        except _REFUSALS:
            continue
        default = parameters[name].default if name in parameters else None
        where = f"optimizer.args.{name}"
        return Problem(
            f"{where} (recipe {options.name})",
            f"{typed(_as_json(value))}, of which {options.target} says {said}",
            "a value that the class accepts",
            f"write '{where}={typed(_as_json(default))}', the class's own"
            if default is not inspect.Parameter.empty
            else f"leave {where} out",
        )
    return Problem(
        f"optimizer.args (recipe {options.name})",
        f"lr={lr}, {dict(options.args)}, of which {options.target} says {said}",
        f"arguments that {options.target} accepts",
        "correct or leave out those you gave",
    )


def _read_back(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, rates: Mapping[str, float | None]
) -> dict[str, Any]:
    """Describe the built object by what it holds; raise where that is not what was requested."""
    cls = type(optimizer)
    arguments = {name: _values_of(optimizer, name) for name in options.args}
    requested = {name: _as_json(value) for name, value in options.args.items()}
    differing = [
        (f"{name}={value}", f"{name}={requested[name]}")
        for name, values in arguments.items()
        for value in values
        if value != requested[name]
    ]
    built = {group["name"]: _as_json(group["lr"]) for group in optimizer.param_groups}
    differing += [
        (f"lr={built.get(name)} for {name}", f"lr={rate}")
        for name, rate in rates.items()
        if built.get(name) != rate
    ]
    rule = options.traits.effective_lr
    differing += [
        (f"no {key!r} in the group {group['name']}", f"one, for effective_lr: {rule}")
        for group in optimizer.param_groups
        for key in RATE_KEYS.get(rule, ())
        if key not in group
    ]
    if cls is not _named_class(options) or cls.__name__ != options.target.rpartition(".")[2]:
        differing.append((f"the class {cls.__qualname__}", f"the class {options.target}"))
    if differing:
        where = f"the built optimizer of recipe {options.name}"
        fix = "the class is not what the recipe says; correct the recipe"
        raise OptbenchError(*(Problem(where, f, e, fix) for f, e in differing))
    return {
        "recipe": options.name,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "package": options.package,
        "arguments": {
            name: values[0] if values else requested[name] for name, values in arguments.items()
        },
        "arguments_not_found": [name for name, values in arguments.items() if not values],
        "defaults": {name: _as_json(value) for name, value in optimizer.defaults.items()},
        "groups": {
            group["name"]: {
                "lr": _as_json(group["lr"]),
                "num_parameters": sum(parameter.numel() for parameter in group["params"]),
            }
            for group in optimizer.param_groups
        },
        "traits": asdict(options.traits),
    }


def _values_of(optimizer: torch.optim.Optimizer, name: str) -> list[Any]:
    """Return every value an argument has in the object: defaults, groups, attributes."""
    attributes = vars(optimizer)
    places: list[Mapping[str, Any]] = [optimizer.defaults, *optimizer.param_groups, attributes]
    # Some classes hold a few of their arguments in a namespace of their own, called args.
    if hasattr(attributes.get("args"), "__dict__"):
        places.append(vars(attributes["args"]))
    values = [_as_json(place[name]) for place in places if name in place]
    if not values and name in _STORED_IN:
        key, index = _STORED_IN[name]
        values = [_as_json(place[key][index]) for place in places if key in place]
    return values


def _as_json(value: Any) -> Any:
    """Return a value as JSON can hold it; numbers JSON cannot hold become words."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_as_json(item) for item in value]
    return repr(value)


def _times(rate: float | None, lr_mult: float) -> float | None:
    return None if rate is None else rate * lr_mult
