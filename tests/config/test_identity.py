"""What makes two runs the same run, and how a run is called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from optbench.config import identity
from optbench.config.build import build_config, register_resolvers
from optbench.errors import BaseError
from optbench.models.files import facts
from optbench.schema import RunConfig
from optbench.storage import resources

pytestmark = pytest.mark.usefixtures("fake_assets")


def config_of(*overrides: str) -> RunConfig:
    register_resolvers()
    with initialize_config_dir(str(resources.conf_dir()), version_base="1.3"):
        return build_config(compose("config", overrides=list(overrides)))


def fingerprint(*overrides: str, data: str = "d", base: str = "b") -> str:
    return identity.weights_fingerprint(
        config_of(*overrides), dataset_fingerprint=data, base_fingerprint=base
    )


@pytest.mark.parametrize(
    "override",
    [
        "optimizer=lion",
        "optimizer.lr=2e-4",
        "optimizer.args.weight_decay=0.1",
        "network.dim=32",
        "network.alpha=1",
        "dropout=rank",
        "scale_weight_norms=one",
        "lr_scheduler=linear",
        "lr_mult=2",
        "+optimizer.args.bound=inf",
        "train.epochs=2",
        "train.batch_size=1",
        "train.num_threads=2",
        "train.torch_compile=true",
        "loss=min_snr",
        "loss.min_timestep=1",
        "loss.min_snr_gamma=5.0",
        "dataset.keep_tokens=2",
        "dataset.enable_wildcard=true",
        "dataset.caption_prefix=x",
        "dataset.caption_suffix=x",
        "dataset.caption_separator=';'",
        "dataset.secondary_separator=';'",
        "dataset.keep_tokens_separator=x",
        "dataset.token_warmup_step=5",
        "dataset.caption_tag_dropout_rate=0.1",
        "dataset.caption_dropout_every_n_epochs=2",
        "dataset.color_aug=true",
        "dataset.random_crop=true",
        "seed=0",
    ],
)
def test_what_affects_weights_changes_the_fingerprint(override: str) -> None:
    assert fingerprint(override) != fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "render=off",
        "render.steps=3",
        "prompts.prompts.a.text=other",
        "runs_dir=elsewhere",
        "cache_dir=elsewhere",
        "sweep_name=mine",
        "optimizer.note=words",
        "base.name=other",
        "dataset.name=other",
        "dataset.num_workers=7",
    ],
)
def test_what_does_not_affect_weights_does_not(override: str) -> None:
    assert fingerprint(override) == fingerprint()


def test_runs_from_before_a_setting_existed_keep_their_fingerprint() -> None:
    settings = identity._weight_settings(config_of())["dataset"]
    assert list(settings) == ["shuffle_caption", "keep_tokens", "caption_dropout_rate", "flip_aug"]
    train = identity._weight_settings(config_of())["train"]
    assert not train.keys() & {"torch_compile", "dynamo_backend"}


def test_data_and_base_count_by_content() -> None:
    assert fingerprint(data="other") != fingerprint()
    assert fingerprint(base="other") != fingerprint()


@pytest.mark.parametrize(
    ("overrides", "slug"),
    [
        ([], "adamw-dim16"),
        (["seed=7"], "adamw-dim16-seed7"),
        (["optimizer=lion", "network.dim=64"], "lion-dim64"),
        (["network.dim=64", "network.alpha=1"], "adamw-dim64-alpha1"),
        (["optimizer.lr=0.0003"], "adamw-dim16-lr0.0003"),
        (["network=locon", "lr_scheduler=linear"], "adamw-dim16-locon-linear"),
        (["dropout=rank", "train.epochs=3"], "adamw-dim16-rank_dropout0.1-epochs3"),
        (["dataset.flip_aug=true"], "adamw-dim16-flip_aug_true"),
        (["dataset.reg_dir=somewhere"], "adamw-dim16-reg"),
        (["dataset.caption_prefix=my word"], "adamw-dim16-caption_prefix_my_word"),
        (["optimizer.args.betas=[0.9,0.95]"], "adamw-dim16-betas0.9_0.95"),
        (["loss=huber"], "adamw-dim16-loss_type_huber"),
        (["loss=min_snr", "loss.min_snr_gamma=1"], "adamw-dim16-min_snr_gamma1"),
        (["loss.multires_noise_iterations=8"], "adamw-dim16-multires_noise_iterations8"),
        (["+optimizer.args.amsgrad=true"], "adamw-dim16-amsgrad_true"),
        (["render=off", "sweep_name=x"], "adamw-dim16"),
    ],
)
def test_a_slug_names_what_is_not_as_shipped(overrides: list[str], slug: str) -> None:
    assert identity.run_slug(config_of(*overrides)) == slug


def test_every_shipped_recipe_has_a_short_name() -> None:
    for file in sorted((resources.conf_dir() / "optimizer").glob("*.yaml")):
        overrides = [f"optimizer={file.stem}", "train.max_grad_norm=0", "lr_scheduler=constant"]
        config = config_of(*overrides)
        assert file.stem in (config.optimizer.name, "dadaptation")  # another name of dadaptadam
        slug = identity.run_slug(config)
        assert slug == f"{config.optimizer.name}-dim16-constant-max_grad_norm0"


def test_a_long_slug_is_cut() -> None:
    many = [f"+optimizer.args.argument_{index}=1" for index in range(20)]
    assert len(identity.run_slug(config_of(*many))) <= 100


def test_a_run_is_identified_by_slug_and_hash(fake_assets: Path) -> None:
    first = identity.plan_run(config_of(), sweep_dir=Path("runs"))
    assert re.fullmatch(r"adamw-dim16-[0-9a-f]{8}", first.name)
    assert len(first.dataset.images) == 3
    (fake_assets / "tiny" / "unet" / "config.json").write_text('{"other": 1}')
    assert identity.plan_run(config_of(), sweep_dir=Path("runs")).name != first.name


def test_pixels_per_latent_come_from_the_autoencoder_in_use(fake_assets: Path) -> None:
    assert facts.pixels_per_latent(config_of().base) == 8
    own = fake_assets / "own_vae"
    own.mkdir()
    (own / "config.json").write_text('{"block_out_channels": [1, 1]}')
    assert facts.pixels_per_latent(config_of(f"base.vae={own}").base) == 2
    (own / "config.json").write_text("[]")
    with pytest.raises(BaseError):
        facts.pixels_per_latent(config_of(f"base.vae={own}").base)


def test_an_optimizer_class_of_ones_own_is_part_of_the_weights_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "optimizer_of_mine.py"
    file.write_text("from torch.optim import SGD as Mine\n")
    override = "optimizer._target_=optimizer_of_mine.Mine"
    first = fingerprint(override)
    assert first == fingerprint(override)
    file.write_text("from torch.optim import Adam as Mine\n")
    assert fingerprint(override) != first


def test_the_kind_of_device_counts_and_which_of_them_does_not() -> None:
    assert fingerprint("train.device=cuda:0") == fingerprint("train.device=cuda")
    assert fingerprint("train.device=cuda") != fingerprint("train.device=cpu")


def test_a_run_made_here_is_named_by_the_device_and_threads_it_gets_here(
    fake_assets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed = identity.plan_run(
        config_of("train.device=auto", "train.num_threads=null"), sweep_dir=tmp_path
    )
    names = set()
    for kind, threads in (("cpu", 2), ("cpu", 4), ("cuda", 2)):
        monkeypatch.setattr(identity, "device_kind", lambda name, kind=kind: kind)
        monkeypatch.setattr(identity, "default_num_threads", lambda threads=threads: threads)
        here = identity.on_this_machine(typed)
        assert (here.config.train.device, here.config.train.num_threads) == (kind, threads)
        assert here.changed_settings == typed.changed_settings
        assert here.name.rpartition("-")[0] == typed.name.rpartition("-")[0]
        names.add(here.name)
    assert len(names) == 3
    written = config_of("train.device=cuda", "train.num_threads=2")
    explicit = identity.plan_run(written, sweep_dir=tmp_path)
    assert explicit.weights_fingerprint == here.weights_fingerprint
    assert identity.on_this_machine(explicit) is explicit
