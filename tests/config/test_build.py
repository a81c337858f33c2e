"""Every problem of a config at once, and what a config is written as."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from optbench.config.build import build_config, config_yaml, register_resolvers
from optbench.errors import ConfigError
from optbench.schema import RunConfig
from optbench.storage import resources

pytestmark = pytest.mark.usefixtures("fake_assets")


def tree_of(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(resources.conf_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@functools.cache
def default_tree() -> DictConfig:
    return tree_of()


def config_of(*overrides: str) -> RunConfig:
    return build_config(tree_of(*overrides))


def places(*overrides: str) -> list[str]:
    """Return where the problems of a bad config are."""
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    return [problem.where for problem in caught.value.problems]


def test_the_defaults_are_what_the_comparison_is_about() -> None:
    config = config_of()
    assert (config.base.name, config.dataset.name, config.optimizer.name) == (
        "tiny",
        "mirelle",
        "adamw",
    )
    assert config.render.seeds == (112233, 445566, 778899, 101011111212)
    assert (config.render.cfg_scale, config.render.steps) == (12.0, 24)
    sizes = [(prompt.name, prompt.width, prompt.height) for prompt in config.prompts.prompts]
    assert sizes == [("a", 512, 768), ("b", 768, 512)]
    assert all("mirelle" in prompt.text for prompt in config.prompts.prompts)


def test_alpha_follows_dim_unless_it_is_given() -> None:
    assert config_of("network.dim=64").network.alpha == 32.0
    assert config_of("network.dim=64", "network.alpha=1").network.alpha == 1.0


def test_dropout_and_max_norm_are_groups_that_write_into_the_network() -> None:
    network = config_of("dropout=all", "scale_weight_norms=one", "network=locon").network
    assert (network.dropout, network.rank_dropout, network.module_dropout) == (0.1, 0.1, 0.1)
    assert (network.scale_weight_norms, network.conv_dim, network.conv_alpha) == (1.0, 8, 1.0)


def test_all_kinds_of_problems_are_told_together() -> None:
    tree = tree_of("dataset=folder", "train.epochs=many", "network.dim=0", "render.seeds=[1,1]")
    with open_dict(tree):
        tree.network.dmi = 3
        tree.colour = "red"
        del tree.train.batch_size
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    found = {problem.where for problem in caught.value.problems}
    assert {
        "dataset.dir",
        "train.epochs",
        "network.dmi",
        "colour",
        "train.batch_size",
        "render.seeds",
    } <= found
    typo = next(p for p in caught.value.problems if p.where == "network.dmi")
    assert "network.dim" in typo.fix


def test_compiled_code_cannot_drop_anew_in_every_step() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("train.torch_compile=true", "dropout=module")
    (problem,) = caught.value.problems
    assert problem.where == "train.torch_compile"
    assert "network.module_dropout" in problem.found
    assert config_of("train.torch_compile=true").train.torch_compile


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("network.dim=0", "network.dim"),
        ("network.dim=1.5", "network.dim"),
        ("network.dim=true", "network.dim"),
        ("network.alpha=0", "network.alpha"),
        ("network.conv_dim=4", "network.conv_alpha"),
        ("network.conv_alpha=4", "network.conv_alpha"),
        ("train.dynamo_backend=eager", "train.dynamo_backend"),
        ("dataset.num_workers=-1", "dataset.num_workers"),
        ("network.dropout=1", "network.dropout"),
        ("network.scale_weight_norms=-1", "network.scale_weight_norms"),
        ("train.epochs=0", "train.epochs"),
        ("train.max_steps=0", "train.max_steps"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.gradient_accumulation=0", "train.gradient_accumulation"),
        ("train.clip_skip=0", "train.clip_skip"),
        ("train.max_grad_norm=-1", "train.max_grad_norm"),
        ("train.mixed_precision=fp8", "train.mixed_precision"),
        ("train.device=gpu", "train.device"),
        ("render.seeds=[]", "render.seeds"),
        ("render.seeds=[18446744073709551616]", "render.seeds"),
        ("render.cfg_scale=0", "render.cfg_scale"),
        ("render.steps=0", "render.steps"),
        ("prompts.prompts.a.width=500", "prompts.prompts.a.width"),
        ("dataset.resolution=[512]", "dataset.resolution"),
        ("seed=-1", "seed"),
        ("lr_mult=0", "lr_mult"),
        ("lr_mult=.nan", "lr_mult"),
        ("sweep_name=../up", "sweep_name"),
        ("base.path=/nowhere", "base.path"),
        ("base.vae=/nowhere", "base.vae"),
        ("base.family=unheard_of", "base.family"),
        ("train.max_steps=null", ""),
        ("train.max_grad_norm=2", ""),
        ("render.seeds=[18446744073709551615]", ""),
    ],
)
def test_one_setting(override: str, where: str) -> None:
    tree = default_tree().copy()
    tree.merge_with_dotlist([override])
    if not where:
        build_config(tree)
        return
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_no_part_to_train_is_refused() -> None:
    (where,) = places("network.train_unet=false", "network.train_text_encoder=false")
    assert "network.train_unet" in where


def test_what_a_recipe_refuses_is_told_before_anything_runs() -> None:
    warm = "lr_scheduler.warmup_steps=0.1"
    assert any("dadaptsgd" in where for where in places("optimizer=dadaptsgd", warm))
    config_of("optimizer=dadaptsgd")
    config_of("optimizer=adafactor", warm)


def test_a_list_for_one_value_points_to_multirun() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("network.dim=[16,32]")
    problem = next(p for p in caught.value.problems if p.where == "network.dim")
    assert "-m network.dim=" in problem.fix


def test_a_config_written_and_read_back_is_equal() -> None:
    config = config_of("optimizer=dadaptlion", "network.dim=8", "sweep_name=mine")
    text = config_yaml(config)
    assert build_config(OmegaConf.create(text)) == config
    assert "_target_: dadaptation.DAdaptLion" in text
    assert "${" not in text


def test_values_without_default_live_in_no_dataclass() -> None:
    hints = dataclasses.fields(RunConfig)
    assert all(field.default is dataclasses.MISSING for field in hints)


def test_prompts_of_your_own() -> None:
    assert "prompts.prompts.a.text" in places("prompts=folder")
    config = config_of(
        "prompts=folder",
        "prompts.prompts.a.text='x, 1girl'",
        "+prompts.prompts.b={text: y, negative: '', width: 64, height: 64}",
    )
    assert [prompt.name for prompt in config.prompts.prompts] == ["a", "b"]


def test_ten_mistakes_of_several_groups_are_reported_together() -> None:
    tree = default_tree().copy()
    planted = {
        "base.lr_scale": -1,
        "dataset.resolution": [512],
        "network.dim": "wide",  # its alpha, half of it, is no second mistake
        "optimizer.lr": True,
        "train.mixed_precision": "fp61",
        "train.max_steps": 2.5,
        "loss.min_snr_gamma": float("inf"),
        "prompts.prompts.a.width": 500,
        "render.seeds": [1, "two"],
        "seed": None,
    }
    for key, value in planted.items():
        OmegaConf.update(tree, key, value)
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    problems = {problem.where: problem for problem in caught.value.problems}
    assert problems.keys() == planted.keys()
    assert problems["network.dim"].found == "'wide'"
    assert problems["train.mixed_precision"].fix.startswith("did you mean train.mixed_precision=fp")
    assert "finite" in problems["loss.min_snr_gamma"].expected
    assert "'two' in render.seeds" in problems["render.seeds"].fix
    assert problems["seed"].found == "null"


@pytest.mark.parametrize("value", ["0.1", "yes", b"x", "\ud800"])
def test_no_type_is_guessed_at(value: object) -> None:
    """Neither text that looks like a number or a yes, nor what no YAML of ours holds."""
    tree = default_tree().copy()
    OmegaConf.update(tree, "network.dropout", value)
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    assert [problem.where for problem in caught.value.problems] == ["network.dropout"]
