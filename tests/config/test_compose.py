"""A whole command line composed and checked at once, as Hydra's sweeper would expand it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from optbench.cli.resize.plan import plan_resizes
from optbench.config import launcher
from optbench.config.compose import SweepPlan, compose_runs
from optbench.errors import ConfigError, Problem
from optbench.storage import resources
from tests.builders.lora_files import write_lora

SD_LAYERS = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (20, (12,)),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (12, (16, 1, 1)),
}
pytestmark = pytest.mark.usefixtures("fake_assets")
SWEEPS = sorted((resources.resource_root() / "sweep").glob("*.yaml"))


def problems_of(*arguments: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose_runs(arguments)
    return caught.value.problems


def names(asked: SweepPlan) -> list[str]:
    return [run.run_dir.name.rpartition("-")[0] for run in asked.runs]


def test_the_main_command_is_twelve_runs() -> None:
    asked = compose_runs(["-m", "optimizer=adamw,lion,dadaptlion", "network.dim=16,32,64,128"])
    assert names(asked) == [
        f"{recipe}-dim{dim}"
        for recipe in ("adamw", "lion", "dadaptlion")
        for dim in (16, 32, 64, 128)
    ]
    assert asked.sweep_dir == Path("runs/optimizer,network.dim")
    assert asked.is_complete


def test_nothing_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    compose_runs(["-m", "network.dim=1,2"])
    problems_of("network.dim=0")
    assert list(empty.iterdir()) == []


def test_one_run_is_a_sweep_called_single() -> None:
    asked = compose_runs(["optimizer=lion"])
    assert (names(asked), asked.sweep_dir) == (["lion-dim16"], Path("runs/single"))


def test_a_sweep_name_wins_over_the_file_and_the_keys() -> None:
    assert compose_runs(["sweep=demo"]).sweep_dir == Path("runs/demo")
    assert compose_runs(["sweep=demo", "sweep_name=mine"]).sweep_dir == Path("runs/mine")
    assert compose_runs(["-m", "seed=1,2", "runs_dir=here"]).sweep_dir == Path("here/seed")


def test_overriding_a_swept_key_replaces_its_axis() -> None:
    whole = compose_runs(["sweep=demo"])
    assert {run.config.optimizer.name for run in whole.runs} == {"adamw", "lion", "dadaptlion"}
    one = compose_runs(["sweep=demo", "optimizer=came"])
    assert {run.config.optimizer.name for run in one.runs} == {"came"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_says_what_it_is_and_keeps_its_word(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = path.read_text().splitlines()[:5]
    patterns = (
        "# @package _global_",
        "# Question: .+",
        "# Source: .+",
        r"# Runs: \d+",
        "# Hours: .+",
    )
    for line, pattern in zip(head, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    num_runs = int(head[3].removeprefix("# Runs: "))
    if resources.sweep_commands()[path.stem] == "resize":
        source = tmp_path / "big.safetensors"
        source.write_bytes(b"named, and not read yet")
        asked = plan_resizes([f"sweep={path.stem}", f"source={source}", f"runs_dir={tmp_path}"])
        assert asked.sweep_dir == tmp_path / path.stem
        assert len(asked.runs) == num_runs
    else:
        needed = []
        if path.stem == "continue_training":
            needed = [f"network.weights={write_lora(tmp_path / 'a.safetensors', layers=SD_LAYERS)}"]
        monkeypatch.setattr(launcher, "find_spec", lambda name: object())
        asked = compose_runs([f"sweep={path.stem}", *needed])
        planned = len(asked.runs)
        if asked.race is not None:
            design = asked.race.design
            num_rates = sum(
                1 if arm in design.rateless else len(design.rates) for arm in design.arms
            )
            planned = num_rates + len(design.arms) * design.confirm[0]  # at least
        elif asked.search is not None:
            planned = asked.search.num_runs
        assert num_runs == planned
        assert asked.sweep_dir.name == path.stem
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    assert all(isinstance(value, str) for value in params.values())


@pytest.mark.parametrize("name", ["max_norm", "dropout"])
def test_studies_c_and_d_train_what_they_say(name: str) -> None:
    for run in compose_runs([f"sweep={name}"]).runs:
        config = run.config
        network, loss = config.network, config.loss
        assert (network.dim, network.alpha, network.conv_dim, network.conv_alpha) == (
            128,
            32,
            32,
            16,
        )
        assert network.down_lr_weight == (0,) * 4 + (1,) * 8
        assert (network.mid_lr_weight, network.up_lr_weight) == (0, (1,) * 12)
        assert (loss.multires_noise_iterations, loss.multires_noise_discount) == (8, 0.3)
        assert (config.dataset.keep_tokens, config.train.batch_size) == (3, 6)
        rates = config.optimizer.lr, config.optimizer.text_encoder_lr
        scale = config.base.lr_scale
        if config.optimizer.name == "lion":
            assert rates == pytest.approx((1e-4 * scale, 5e-5 * scale))
        else:
            assert rates == (1.0, None)
        assert (len(config.prompts.prompts), len(config.render.seeds)) == (3, 1)


def test_a_sweep_of_another_command_is_refused_with_that_command() -> None:
    (problem,) = problems_of("sweep=resize_ratio", "network.dim=4")
    assert problem.where == "sweep"
    assert resources.command_line("resize", "sweep=resize_ratio") in problem.fix
    with pytest.raises(ConfigError) as caught:
        plan_resizes(["sweep=demo", "source=x"])
    assert resources.command_line("", "sweep=demo") in str(caught.value)


def test_a_list_in_a_sweep_file_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own" / "sweep"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      network.dim: [16, 32]\n"
    )
    (problem,) = problems_of("sweep=mine", "--config-dir", str(own.parent))
    assert problem.where == "hydra.sweeper.params.network.dim"
    assert '"16,32"' in problem.fix


def test_a_recipe_of_your_own_is_found(tmp_path: Path) -> None:
    own = tmp_path / "own" / "optimizer"
    own.mkdir(parents=True)
    text = (resources.conf_dir() / "optimizer" / "adamw.yaml").read_text()
    (own / "mine.yaml").write_text(text.replace("name: adamw", "name: mine"))
    asked = compose_runs(["optimizer=mine", "--config-dir", str(own.parent)])
    assert names(asked) == ["mine-dim16"]


def test_everything_wrong_is_told_at_once_with_the_nearest_thing_that_exists() -> None:
    found = problems_of(
        "x y",
        "optimizer=adamww",
        "network.dimm=3",
        "dim=3",
        "networkdim=3",
        "lr_schedular=linear",
        "train.epochs=many",
        "train.batch_size=0",
        "network.alpha=1,2",
    )
    fixes = {problem.where: problem.fix for problem in found}
    assert set(fixes) == {
        "the command line",
        "optimizer",
        "network.dimm",
        "dim",
        "networkdim",
        "lr_schedular",
        "train.epochs",
        "train.batch_size",
        "network.alpha",
    }
    assert "optimizer=adamw" in fixes["optimizer"]
    assert "network.dim" in fixes["network.dimm"]
    assert fixes["networkdim"] == "did you mean network.dim?"
    assert "network.dim" in fixes["dim"]
    assert "lr_scheduler" in fixes["lr_schedular"]
    assert "-m network.alpha=1,2" in fixes["network.alpha"]


def test_a_problem_of_one_run_is_told_once() -> None:
    found = problems_of("-m", "optimizer=adamw,lion", "network.dim=0,16")
    assert [problem.where for problem in found] == ["network.dim"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "optimizer=glob(nothing*)"],
        ["-m", "network.dim=range(5,5)"],
        ["-m", "seed=interval(1,2)"],
        ["-m", "network.dim=16,16"],
        ["-m", "render.steps=3,4"],
        ["-m", "sweep_name=a,b"],
        ["sweep=unheard_of"],
        ["--config-dir", "/nowhere"],
        ["+network.dim.deep=1"],
        ["~nothing"],
        ["optimizer="],
        ["--config-name", "other"],
    ],
)
def test_a_bad_command_line_is_a_message_and_no_traceback(arguments: list[str]) -> None:
    assert problems_of(*arguments)


def test_unreadable_pictures_are_told_beside_a_bad_dim(fake_assets: Path) -> None:
    (fake_assets / "mirelle" / "3_girl" / "0.png").write_bytes(b"no picture")
    found = problems_of("network.dim=0")
    assert any(problem.where == "network.dim" for problem in found)
    assert any("0.png" in f"{problem.where} {problem.found}" for problem in found)


def test_a_wrong_value_is_not_also_called_missing() -> None:
    """dataset=folder has no folder of its own to fall back to."""
    with pytest.raises(ConfigError) as caught:
        compose_runs(["dataset=folder", "dataset.dir=/nowhere/at/all"])
    (problem,) = caught.value.problems
    assert "/nowhere/at/all" in problem.found


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_prompt_with_commas_is_no_list_of_values(flags: list[str]) -> None:
    asked = [*flags, "prompts=folder"]
    with pytest.raises(ConfigError) as caught:
        compose_runs([*asked, "prompts.prompts.a.text=me, 1girl", "network.dim=0"])
    wrong = {one.where: one for one in caught.value.problems}
    assert set(wrong) == {"prompts.prompts.a.text", "network.dim"}
    assert "\"prompts.prompts.a.text='me, 1girl'\"" in wrong["prompts.prompts.a.text"].fix
    (run,) = compose_runs([*asked, "prompts.prompts.a.text='me, 1girl'"]).runs
    assert run.config.prompts.prompts[0].text == "me, 1girl"


def test_many_swept_keys_give_a_name_a_file_system_can_hold() -> None:
    keys = ["network.dim", "network.alpha", "train.batch_size", "train.gradient_accumulation"]
    keys += ["optimizer.args.weight_decay", "dataset.caption_dropout_rate", "dataset.keep_tokens"]
    swept = [f"{key}=choice({0.5 if 'rate' in key or 'decay' in key else 1})" for key in keys]
    name = compose_runs(["-m", *swept]).sweep_dir.name
    assert name.startswith("network.dim,network.alpha")
    assert len(name) < 140


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        (["base.lr_scales.adamw=30"], 3e-3),
        (["base.lr_scales.adamw=30", "base.lr_scales.lion=7"], 3e-3),
        (["base.lr_scales.adamw=null"], 6e-3),  # what suits the base on the whole
        (["base.lr_scales.adamw=30", "base.lr_scale=10"], 1e-3),  # one scale for all was typed
        (["base.lr_scales.adamw=30", "optimizer.lr=1.0e-4"], 1e-4),
        (["optimizer=prodigy", "base.lr_scales.prodigy=null"], 1.0),
        (["optimizer=prodigy", "base.lr_scales.prodigy=0.5"], 0.5),
        (["optimizer=dadaptadan", "base.lr_scales.dadaptadan=3"], 1.5),
        (["optimizer=adafactor_auto"], None),
    ],
    ids=str,
)
def test_a_base_may_have_a_rate_for_every_recipe(overrides: list[str], rate: float | None) -> None:
    (run,) = compose_runs(overrides).runs
    config = run.config
    assert config.optimizer.lr == (None if rate is None else pytest.approx(rate))
    assert ("optimizer.lr" in run.changed_settings) == ("optimizer.lr=1.0e-4" in overrides)
    assert set(config.base.lr_scales) <= {config.optimizer.name}
    if config.optimizer.name == "adamw":
        assert rate is not None
        assert config.optimizer.text_encoder_lr == pytest.approx(rate / 2)
    # Rates make no other base model, and it is loaded once for all recipes.
    assert config.base == compose_runs(["optimizer=lion"]).runs[0].config.base


def test_the_scale_of_a_recipe_is_part_of_a_run_and_can_be_swept() -> None:
    runs = compose_runs(["-m", "base.lr_scales.adamw=30,40"]).runs
    assert len({run.name for run in runs}) == len({run.weights_fingerprint for run in runs}) == 2
    other = compose_runs(["base.lr_scales.adamw=30", "base.lr_scales.lion=7"]).runs[0]
    assert other.name == runs[0].name


def test_a_mistyped_scale_is_told_by_its_own_name() -> None:
    (problem,) = problems_of("base.lr_scales.adamw=-1")
    assert problem.where == "base.lr_scales.adamw"
    (problem,) = problems_of("base.lr_scales.adam=1")
    assert "base.lr_scales.adamw" in problem.fix


def test_the_embedded_base_lists_every_recipe_that_takes_a_rate() -> None:
    conf = resources.conf_dir()
    recipes = [OmegaConf.load(path) for path in sorted((conf / "optimizer").glob("*.yaml"))]
    rated = [
        recipe.name
        for recipe in recipes
        if "traits" in recipe and recipe.traits.lr_role != "automatic"
    ]
    assert sorted(OmegaConf.load(conf / "base" / "tiny.yaml").lr_scales) == sorted(rated)
