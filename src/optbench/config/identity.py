"""Plan a run: the hash of everything that affects its weights, its readable name, its data.

Equal settings give equal names in every process and on every machine. What only affects images,
paths or the report is in no hash.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import GroupDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from optbench.config.build import config_tree, register_resolvers
from optbench.data import hold_out, read_dataset
from optbench.lora.initial_weights import InitialWeights, ReadWeights, initial_weights_of
from optbench.models.device import default_num_threads, device_kind
from optbench.models.files import facts
from optbench.models.text.tokens import CLEANING_VERSION, is_repaired
from optbench.records import Dataset
from optbench.schema import BaseOptions, DatasetOptions, RunConfig
from optbench.storage import resources
from optbench.storage.hashing import fingerprint
from optbench.storage.nested import flatten
from optbench.storage.source_code import source_fingerprint
from optbench.training.plan import RunPlan, holds_out

_WEIGHTS_SCHEMA = 1  # raise it when equal settings begin to give other weights
_NUM_HASH_DIGITS = 8
_MAX_SLUG_LENGTH = 100
_GROUPS_IN_SLUG = ("base", "dataset", "network", "lr_scheduler")
_OPTIMIZER_KEYS = (
    "_target_",
    "lr",
    "unet_lr",
    "text_encoder_lr",
    "args",
    "group_args",
    "traits",
)
_BASE_KEYS = ("v_parameterization",)
_DATASET_KEYS = ("shuffle_caption", "keep_tokens", "caption_dropout_rate", "flip_aug")
# In the hash only while they do something, so that runs from before they existed keep their names.
_DATASET_SWITCHES: Mapping[str, Any] = {
    "enable_wildcard": False,
    "caption_prefix": None,
    "caption_suffix": None,
    "caption_separator": ",",
    "secondary_separator": None,
    "keep_tokens_separator": None,
    "token_warmup_min": 1,
    "token_warmup_step": 0.0,
    "caption_tag_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "color_aug": False,
    "random_crop": False,
}
_TRAIN_SWITCHES: Mapping[str, Any] = {"torch_compile": False, "dynamo_backend": "inductor"}
_HASHED_ELSEWHERE = ("base", "prompts", "render", "validate", "metric", "tracker")
# What is continued is hashed by its tensors, wherever the file lies.
_NOT_OF_NETWORK = ("name", "weights", "dim_from_weights")
_UNSPOKEN = ("optimizer._target_", "optimizer.traits")


def on_this_machine(plan: RunPlan) -> RunPlan:
    """Return the plan of a run that is made here: device and threads are what they come to here.

    `train.device=auto` and `train.num_threads=null` are words; a run of each kind of device and
    each number of threads has its own name, for they change the last bits. Where another machine
    makes the run, the words stay, and its provenance says what they came to.
    """
    train = plan.config.train
    here = dataclasses.replace(
        train,
        device=device_kind("auto") if train.device == "auto" else train.device,
        num_threads=default_num_threads() if train.num_threads is None else train.num_threads,
    )
    if here == train:
        return plan
    config = dataclasses.replace(plan.config, train=here)
    weights = weights_fingerprint(
        config,
        dataset_fingerprint=plan.dataset.fingerprint,
        base_fingerprint=plan.base_fingerprint,
        start_fingerprint=None
        if plan.initial_weights is None
        else plan.initial_weights.fingerprint,
        cleaning=_cleaning(config, plan.dataset),
    )
    slug = plan.name[: -_NUM_HASH_DIGITS - 1]
    name = f"{slug}-{weights[:_NUM_HASH_DIGITS]}"
    return dataclasses.replace(plan, config=config, name=name, weights_fingerprint=weights)


def plan_run(
    config: RunConfig,
    *,
    sweep_dir: Path,
    overrides: tuple[str, ...] = (),
    datasets: dict[tuple[DatasetOptions, int], Dataset] | None = None,
    read: ReadWeights | None = None,
    bases: dict[tuple[BaseOptions, str], tuple[int, str]] | None = None,
) -> RunPlan:
    """Return the plan of a run; reads the data set and the base's files, the latter once.

    Args:
        config: The run's settings.
        sweep_dir: The folder of the sweep the run belongs to.
        overrides: What makes the run differ from the defaults, as typed.
        datasets: Data sets that were read for other runs of the command line; read ones join them.
        read: LoRA files to continue, likewise.
        bases: The size of a latent's pixel and the fingerprint of base models, likewise.

    Raises:
        DatasetError: If pictures or captions cannot be read.
        BaseError: If the base's autoencoder has no readable config.
        OptbenchError: If the LoRA file that is continued cannot be read.
    """
    start = initial_weights_of(config.network, read)
    datasets = {} if datasets is None else datasets
    bases = {} if bases is None else bases
    base_key = config.base, config.cache_dir
    if base_key not in bases:
        bases[base_key] = (
            facts.pixels_per_latent(config.base),
            facts.base_fingerprint(config.base, cache_dir=Path(config.cache_dir)),
        )
    pixels, base = bases[base_key]
    data_key = config.dataset, pixels
    if data_key not in datasets:
        datasets[data_key] = read_dataset(config.dataset, pixels_per_latent=data_key[1])
    dataset, held_out = datasets[data_key], None
    if holds_out(config.validate):
        dataset, held_out = hold_out(dataset, seed=config.seed)
    weights = weights_fingerprint(
        config,
        dataset_fingerprint=dataset.fingerprint,
        base_fingerprint=base,
        start_fingerprint=None if start is None else start.fingerprint,
        cleaning=_cleaning(config, dataset),
    )
    changed = _changed(config, _shipped_settings(config))
    return RunPlan(
        config=config,
        overrides=overrides,
        name=f"{_slug(config, changed, start)}-{weights[:_NUM_HASH_DIGITS]}",
        weights_fingerprint=weights,
        base_fingerprint=base,
        changed_settings=_names(config, changed),
        dataset=dataset,
        held_out=held_out,
        initial_weights=start,
        sweep_dir=sweep_dir,
    )


def _cleaning(config: RunConfig, dataset: Dataset) -> int | None:
    """Return the version of how captions are cleaned; None where it changes none of them."""
    around = [config.dataset.caption_prefix, config.dataset.caption_suffix]
    texts = [*filter(None, around), *(image.caption for image in dataset.images)]
    return CLEANING_VERSION if any(map(is_repaired, texts)) else None


def weights_fingerprint(
    config: RunConfig,
    *,
    dataset_fingerprint: str,
    base_fingerprint: str,
    start_fingerprint: str | None = None,
    cleaning: int | None = None,
) -> str:
    """Return 16 hex digits that change with everything that affects the weights, and only then.

    The kind of device and the number of threads count: they change the last bits.

    Args:
        config: The run's settings.
        dataset_fingerprint: Of images and captions.
        base_fingerprint: Of the base model's files.
        start_fingerprint: Of the LoRA that is continued, if any.
        cleaning: How captions are cleaned, where that changes any of them.
    """
    content = {
        "schema": _WEIGHTS_SCHEMA,
        "base_files": base_fingerprint,
        "family": config.base.family,
        "pictures": dataset_fingerprint,
        **_weight_settings(config),
    }
    if start_fingerprint is not None:
        content["continues"] = start_fingerprint
    if cleaning is not None:
        content["cleaning"] = cleaning
    if (source := source_fingerprint(config.optimizer.target)) is not None:
        content["optimizer_source"] = source
    return fingerprint(content)


def run_slug(config: RunConfig, start: InitialWeights | None = None) -> str:
    """Return recipe, dim, and whatever affects the weights and is not as conf/ ships it."""
    return _slug(config, _changed(config, _shipped_settings(config)), start)


def _slug(
    config: RunConfig, changed: Sequence[tuple[str, Any]], start: InitialWeights | None
) -> str:
    words = [config.optimizer.name, f"dim{config.network.dim}"]
    chosen = _shipped_choices()
    if start is not None:
        words.append(f"continues_{start.fingerprint[:_NUM_HASH_DIGITS]}")
    words += [
        name
        for group in _GROUPS_IN_SLUG
        if (name := getattr(config, group).name) != chosen.get(group)
    ]
    words += ["reg"] if config.dataset.reg_dir is not None else []
    words += [
        f"{key.rpartition('.')[2]}{_spelled(value)}"
        for key, value in changed
        if key != "network.dim"
    ]
    slug = re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(words))
    return slug[:_MAX_SLUG_LENGTH].strip(".")


def changed_settings(config: RunConfig) -> tuple[str, ...]:
    """Return the settings that affect the weights and are not as conf/ ships them, by override.

    A value computed from a changed one is not changed itself; whoever compares two runs can tell
    by that what was asked for and what only follows.
    """
    return _names(config, _changed(config, _shipped_settings(config)))


def _names(config: RunConfig, changed: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    keys = [key for key, _ in changed]
    return tuple(keys) if config.network.weights is None else (*keys, "network.weights")


def _weight_settings(config: RunConfig) -> dict[str, Any]:
    tree = config_tree(config)
    return {
        "base": {key: tree["base"][key] for key in _BASE_KEYS},
        "dataset": _without_off(
            {key: tree["dataset"][key] for key in (*_DATASET_KEYS, *_DATASET_SWITCHES)},
            _DATASET_SWITCHES,
        ),
        "network": {
            key: value for key, value in tree["network"].items() if key not in _NOT_OF_NETWORK
        },
        "optimizer": {key: tree["optimizer"][key] for key in _OPTIMIZER_KEYS},
        "lr_scheduler": tree["lr_scheduler"],
        "train": {
            **_without_off(tree["train"], _TRAIN_SWITCHES),
            "device": config.train.device.partition(":")[0],  # which one of a kind is no matter
        },
        "loss": tree["loss"],
        "lr_mult": tree["lr_mult"],
        "seed": tree["seed"],
    }


def _without_off(settings: Mapping[str, Any], switches: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings less the switches that are off."""
    return {
        key: value
        for key, value in settings.items()
        if key not in switches or value != switches[key]
    }


@functools.cache
def _shipped_files() -> ConfigRepository:
    """Return Hydra's reader of conf/, without anyone's --config-dir."""
    return ConfigRepository(create_config_search_path(str(resources.conf_dir())))


@functools.cache
def _shipped(file: str) -> ConfigResult:
    """Return one file of conf/; not to be changed."""
    config = _shipped_files().load_config(file)
    assert config is not None, f"conf/{file}.yaml ships with optbench"
    return config


def _shipped_choices() -> dict[str, str | None]:
    """Return what the defaults list of conf/config.yaml chooses, by group."""
    entries = _shipped("config").defaults_list or []
    return {
        entry.group: entry.get_name()
        for entry in entries
        if isinstance(entry, GroupDefault) and not entry.override and entry.group
    }


@dataclass(frozen=True, slots=True)
class _Shipped:
    """The weight settings as conf/ ships them for one choice of options; never changed."""

    tree: DictConfig
    referenced: frozenset[str]  # last words of the keys that computed values are computed from
    _values: dict[str, tuple[Any, bool]] = field(default_factory=dict)
    _apart: dict[str, frozenset[str]] = field(default_factory=dict)

    def value(self, key: str) -> tuple[Any, bool]:
        """Return a setting's value, and whether it is computed from others."""
        if key not in self._values:
            group, _, last = key.rpartition(".")
            parent = OmegaConf.select(self.tree, group) if group else self.tree
            is_computed = isinstance(parent, DictConfig) and OmegaConf.is_interpolation(
                parent, last
            )
            self._values[key] = _plain_value(self.tree, key), is_computed
        return self._values[key]

    def computed_apart(
        self, sources: Mapping[str, Any], computed: Mapping[str, Any]
    ) -> frozenset[str]:
        """Return the computed settings that are not what they come to.

        Args:
            sources: The changed settings that others are computed from.
            computed: The run's values of all that is computed.
        """
        memo = json.dumps([sources, computed])
        if memo not in self._apart:
            tree = copy.deepcopy(self.tree)
            for key, value in sources.items():
                OmegaConf.update(tree, key, value, force_add=True)
            apart = set()
            # In order: one computed value may hang on another before it (text_encoder_lr on lr).
            for key, value in computed.items():
                if _plain_value(tree, key) != value:
                    apart.add(key)
                    OmegaConf.update(tree, key, value)
            self._apart[memo] = frozenset(apart)
        return self._apart[memo]


def _shipped_settings(config: RunConfig) -> _Shipped:
    """Return the weight settings as conf/ ships them for this run's choice of options."""
    options = tuple(
        (group, getattr(getattr(config, group, None), "name", default))
        for group, default in _shipped_choices().items()
        if group not in _HASHED_ELSEWHERE
    )
    scales = tuple(config.base.lr_scales.items())
    return _shipped_options(config.base.lr_scale, scales, options)


@functools.lru_cache(maxsize=64)
def _shipped_options(
    lr_scale: float,
    lr_scales: tuple[tuple[str, float | None], ...],
    options: tuple[tuple[str, str | None], ...],
) -> _Shipped:
    register_resolvers()
    root = _shipped("config").config
    assert isinstance(root, DictConfig)
    # The base is hashed by its content; only the rates' scales enter other settings.
    base = {
        "lr_scale": lr_scale,
        "lr_scales": dict(lr_scales),
        **dict.fromkeys(_BASE_KEYS),
    }
    tree = OmegaConf.create({"seed": root.seed, "lr_mult": root.lr_mult, "base": base})
    for group, option in options:
        file = f"{group}/{option}"
        if _shipped_files().config_exists(file):
            shipped = _shipped(file)
            OmegaConf.update(tree, shipped.header["package"] or group, shipped.config)
    raw = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(raw, dict)
    flat = flatten({str(key): value for key, value in raw.items()})
    texts = [text for text in flat.values() if isinstance(text, str) and "${" in text]
    return _Shipped(tree, frozenset(re.findall(r"\w+", " ".join(texts))))


def _changed(config: RunConfig, shipped: _Shipped) -> list[tuple[str, Any]]:
    """Return the settings that are not as shipped, in the order of the schema.

    A value that is computed from a changed one, and nothing else, is not changed itself: dim 32
    with its alpha of 16 is one change, and dim 32 with an alpha of 1 is two.
    """
    actual = {
        key: value
        for key, value in flatten(_weight_settings(config)).items()
        # A recipe of one's own is not known.
        if key.partition(".")[0] in shipped.tree
        and not key.startswith(_UNSPOKEN)
        and key != "lr_scheduler.name"
    }
    changed = {}
    computed = {}
    for key, value in actual.items():
        known, is_computed = shipped.value(key)
        if is_computed:
            computed[key] = value
        elif known != value:
            changed[key] = value
    if all(shipped.value(key)[0] == value for key, value in computed.items()) and not any(
        key.rpartition(".")[2] in shipped.referenced for key in changed
    ):
        return list(changed.items())
    sources = {
        key: value for key, value in changed.items() if key.rpartition(".")[2] in shipped.referenced
    }
    apart = shipped.computed_apart(sources, computed)
    return [(key, value) for key, value in actual.items() if key in changed or key in apart]


def _plain_value(tree: DictConfig, key: str) -> Any:
    value = OmegaConf.select(tree, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(_spelled(item).lstrip("_") for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"_{value}".lower()
