"""From kohya's trainer to here: the same values, or a sentence."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optbench.analysis import settings
from optbench.cli import plan
from optbench.cli.trainers import import_command
from optbench.cli.trainers.imported import PLACEHOLDER_PROMPT, Imported
from optbench.cli.trainers.kohya import option_names
from optbench.cli.trainers.kohya.import_script import convert
from optbench.cli.trainers.kohya.read_script import read_training
from optbench.cli.trainers.options import full_name, options
from optbench.config import rules
from optbench.errors import ConfigError
from optbench.schema import RunConfig
from optbench.storage import resources
from optbench.storage.resources import program
from tests.builders.kohya import config_of, imported, imported_config, runnable, tree_of
from tools import kohya_names

PARITY = Path(__file__).resolve().parents[2] / "parity"
COMMAND = (
    "--pretrained_model_name_or_path=model.safetensors --train_data_dir=data "
    "--caption_extension=.txt --network_module=networks.lora --network_dim=8 --network_alpha=4 "
    "--learning_rate=3e-4 --max_train_steps=100 --resolution=512,512 --enable_bucket"
)


@pytest.fixture(autouse=True)
def _no_checkpoint_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "check_base", lambda _: [])
    monkeypatch.setattr(rules, "check_tracker", lambda _: [])  # wandb need not be installed


def sentences(found: Imported) -> str:
    return "\n".join([*found.notes, *found.lost, *found.ignored, *found.not_needed])


def read(tmp_path: Path, name: str, text: str) -> Imported:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return convert(read_training(tmp_path / name), folder=tmp_path)


# --- the table of options ---


def test_the_table_has_every_option_of_the_trainers_own_parser() -> None:
    parsed = json.loads((PARITY / "options.json").read_text())["cases"]
    assert list(options()) == list(parsed)
    assert len(parsed) == 196  # 193 of train_network.py and 3 of sdxl_train_network.py
    types = {"int_or_float": "length", "Path": "str"}
    for name, (action, type_, default, num_values, choices) in parsed.items():
        option = options()[name]
        expected = "flag" if action == "StoreTrueAction" else types.get(type_, type_)
        assert option.type == expected + ("s" if num_values == "*" else ""), name
        assert option.default == default, name
        assert set(option.choices) == {str(one) for one in choices or () if one is not None}, name
        assert option.meaning
        assert option.how in ("same", "read", "unneeded", "missing")
        assert option.remark or option.how != "unneeded", name


def test_the_page_for_people_is_made_from_the_table() -> None:
    assert kohya_names.PAGE.read_text(encoding="utf-8") == kohya_names.page(), "type make docs"


def test_every_setting_has_an_equivalent_or_a_reason_for_none() -> None:
    tree = tree_of()
    known = {
        *(option.ours for option in options().values()),
        *option_names.NETWORK_ARGS.values(),
        *option_names.SPECIAL,
        *option_names.WITHOUT_EQUIVALENT,
    }
    groups = {key for key, value in tree.items() if isinstance(value, dict) and "name" in value}
    listed = settings(tree).keys() | {"optimizer.note", "optimizer.package", "optimizer.paper"}
    inner = ("optimizer.args.", "optimizer.traits.", "optimizer.refused_args.", "prompts.prompts")
    missing = {key for key in listed - known - groups if not key.startswith(inner)}
    assert not missing, "give each a line in options.csv or option_names"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_train_epoch", "max_train_epochs"),
        ("network_mod", "network_module"),
        ("save_precision", "save_precision"),
        ("resume", "resume"),  # itself, although resume_from_huggingface begins so
    ],
)
def test_the_beginning_of_a_name_is_the_option(written: str, meant: str) -> None:
    assert full_name(written) == meant
    assert full_name("save_") != "save_"
    assert len(full_name("lr_scheduler_")) == 6
    assert not full_name("no_such_option")


# --- the same values, whatever is given ---


def setting(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


# What the trainer itself refuses is not drawn; sizes are such that our rules have nothing to add.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "resolution": st.sampled_from(["512", "512,768", "1024,1024"]),
    "caption_extension": st.sampled_from([".txt", "txt", ".caption"]),
    "caption_extention": st.sampled_from([".tags", "tags"]),
    "keep_tokens": st.integers(0, 4),
    "keep_tokens_separator": st.sampled_from(["", "|||"]),
    "caption_separator": st.sampled_from([",", ".", ";"]),
    "secondary_separator": st.sampled_from(["", ";;;", ","]),
    "caption_prefix": st.sampled_from(["", "trigger,"]),
    "caption_suffix": st.sampled_from(["", "best quality"]),
    "caption_dropout_rate": st.sampled_from([0.0, 0.1, 1.0]),
    "caption_tag_dropout_rate": st.sampled_from([0.0, 0.3]),
    "caption_dropout_every_n_epochs": st.integers(0, 12),
    "token_warmup_min": st.integers(1, 3),
    "token_warmup_step": st.sampled_from([0.0, 0.2, 100.0]),
    "min_bucket_reso": st.sampled_from([256, 300, 320]),
    "max_bucket_reso": st.sampled_from([1024, 1500, 2048]),
    "bucket_reso_steps": st.sampled_from([64, 128]),
    "train_batch_size": st.integers(1, 8),
    "gradient_accumulation_steps": st.integers(1, 4),
    "max_train_epochs": st.integers(1, 20),
    "max_train_steps": st.integers(1, 5000),
    "max_token_length": st.sampled_from([150, 225]),
    "mixed_precision": st.sampled_from(["no", "fp16", "bf16"]),
    "save_precision": st.sampled_from(["float", "fp16", "bf16"]),
    "max_grad_norm": st.sampled_from([0.0, 0.5, 1.0]),
    "clip_skip": st.integers(1, 3),
    "seed": st.integers(0, 2**32 - 1),
    "dynamo_backend": st.sampled_from(["inductor", "eager", "tvm"]),
    "network_dim": st.integers(1, 64),
    "network_alpha": st.sampled_from([0.0, 0.5, 1.0, 8.0]),
    "network_dropout": st.sampled_from([0.0, 0.1]),
    "scale_weight_norms": st.sampled_from([0.0, 1.0]),
    "learning_rate": st.sampled_from([0.0, 1e-4, 2e-6]),
    "unet_lr": st.sampled_from([0.0, 1e-4, 3e-5]),
    "text_encoder_lr": st.sampled_from([0.0, 5e-5]),
    "optimizer_type": st.sampled_from(
        ["", "AdamW", "adamw8bit", "Lion", "AdaFactor", "PagedAdamW", "NAdam", "AdamWScheduleFree"]
    ),
    "lr_scheduler": st.sampled_from(
        [
            *("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
            *("polynomial", "inverse_sqrt", "warmup_stable_decay"),
        ]
    ),
    "lr_warmup_steps": st.sampled_from([0, 10, 0.1]),
    "lr_decay_steps": st.sampled_from([0, 20, 0.2]),
    "lr_scheduler_num_cycles": st.integers(1, 5),
    "lr_scheduler_power": st.sampled_from([0.5, 1.0, 2.0]),
    "lr_scheduler_timescale": st.integers(1, 100),
    "lr_scheduler_min_lr_ratio": st.sampled_from([0.0, 0.1]),
    "loss_type": st.sampled_from(["l2", "l1", "huber", "smooth_l1"]),
    "huber_schedule": st.sampled_from(["constant", "exponential", "snr"]),
    "huber_c": st.sampled_from([0.1, 0.05]),
    "huber_scale": st.sampled_from([1.0, 2.0]),
    "min_snr_gamma": st.sampled_from([0.0, 5.0]),
    "v_pred_like_loss": st.sampled_from([0.0, 0.5]),
    "noise_offset": st.sampled_from([0.0, 0.05]),
    "adaptive_noise_scale": st.sampled_from([0.0, -0.01, 0.01]),
    "multires_noise_iterations": st.sampled_from([0, 6]),
    "multires_noise_discount": st.sampled_from([0.3, 0.8]),
    "ip_noise_gamma": st.sampled_from([0.0, 0.1]),
    "min_timestep": st.integers(0, 900),
    "max_timestep": st.integers(1, 999),
    "prior_loss_weight": st.sampled_from([0.5, 1.0]),
    "reg_data_dir": st.sampled_from(["", "/reg"]),
    "vae": st.sampled_from(["", "/models/vae.safetensors"]),
    "pretrained_model_name_or_path": st.just("/models/base.safetensors"),
    "train_data_dir": st.just("/images"),
    "max_data_loader_n_workers": st.integers(0, 8),
    "log_with": st.sampled_from(["tensorboard", "wandb", "all"]),
    "log_tracker_name": st.just("project"),
    "wandb_run_name": st.just("run"),
}
# Read together with others in tests of their own.
APART = {
    *("network_args", "optimizer_args", "lr_scheduler_args", "lr_scheduler_type", "config_file"),
    *("sample_prompts", "network_weights", "dim_from_weights", "network_module"),
    *("use_8bit_adam", "use_lion_optimizer", "dataset_config", "log_tracker_config"),
    *("network_train_unet_only", "network_train_text_encoder_only", "v2"),
}


def value_of(name: str) -> st.SearchStrategy[Any]:
    option = options()[name]
    if name in VALUES:
        return VALUES[name]
    if option.type == "flag":
        return st.just(True)
    if option.choices:
        return st.sampled_from(option.choices)
    kinds = {"int": st.integers(1, 9), "float": st.sampled_from([0.5, 2.0])}
    return kinds.get(option.type.removesuffix("s"), st.just("word"))


def told(name: str, value: object) -> str:
    return f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"


def effective(name: str, given: dict[str, Any]) -> Any:
    """Return the value that our setting of one name must have, by the trainer's own rules."""
    value = given.get(name, options()[name].default)
    sides = {"caption_extension": given.get("caption_extention") or value}
    value = sides.get(name, value)
    if name == "caption_extension":
        return value if value.startswith(".") else f".{value}"
    if name in ("scale_weight_norms", "vae", "reg_data_dir", "keep_tokens_separator"):
        return value or None
    if name in ("secondary_separator", "caption_prefix", "caption_suffix", "v_pred_like_loss"):
        return value or None
    if name in ("min_snr_gamma", "noise_offset", "adaptive_noise_scale", "ip_noise_gamma"):
        return value or None
    if name == "multires_noise_iterations":
        return value or None
    if name == "network_alpha":
        return value or float(effective("network_dim", given))
    fallbacks = {"network_dim": 4, "network_dropout": 0.0, "save_precision": "float"}
    return fallbacks.get(name) if value is None else value


@given(data=st.data(), family=st.sampled_from(["sd15", "sdxl"]))
def test_any_options_have_the_trainers_values_or_are_named(
    data: st.DataObject, family: str
) -> None:
    names = st.sampled_from(sorted(set(options()) - APART))
    chosen = data.draw(st.sets(names, min_size=1, max_size=14))
    given_values = {name: data.draw(value_of(name), label=name) for name in sorted(chosen)}
    lr = given_values.get("learning_rate", 2e-6)
    assume(lr or (given_values.get("unet_lr") and given_values.get("text_encoder_lr")))
    assume(given_values.get("unet_lr", lr) or given_values.get("text_encoder_lr", lr))
    assume(given_values.get("optimizer_type") != "AdaFactor" or lr)
    found = imported(" ".join(told(*pair) for pair in given_values.items()), family=family)
    config = config_of(*runnable(found.overrides))  # and nothing in it is refused
    said = sentences(found)
    for name, option in options().items():
        if option.how != "same":
            continue
        ours, value = setting(config, option.ours), effective(name, given_values)
        if name in given_values and f"{name}" in said:
            continue
        if name in ("huber_schedule", "huber_c", "huber_scale", "multires_noise_discount"):
            assert ours in (value, None), name
        elif name in ("min_bucket_reso", "max_bucket_reso", "keep_tokens"):
            assert ours == value or name not in given_values, name
        elif name in ("pretrained_model_name_or_path", "train_data_dir"):
            assert name not in given_values or ours == value
        elif name == "token_warmup_step" or isinstance(value, float):
            assert ours == pytest.approx(value), name
        elif name != "bucket_no_upscale" or given_values.get("enable_bucket"):
            assert ours == value, name
    for name, value in given_values.items():
        option = options()[name]
        if (
            option.how in ("missing", "unneeded")
            and str(value) != str(option.default)
            and value not in ("", 0)
        ):
            is_kept = name == "max_data_loader_n_workers"
            assert name in said or is_kept, name
    # Nothing that is as it is there anyway is called lost.
    lost = " ".join(found.lost)
    assert not [name for name in options() if f"{name}=" in lost and name not in given_values]


@given(data=st.data())
def test_rates_and_schedule_are_the_trainers(data: st.DataObject) -> None:
    names = [
        *("learning_rate", "unet_lr", "text_encoder_lr", "optimizer_type", "lr_scheduler"),
        *("lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power"),
        *("lr_scheduler_timescale", "lr_scheduler_min_lr_ratio"),
    ]
    values = {
        name: data.draw(VALUES[name], label=name)
        for name in sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    }
    lr = values.get("learning_rate", 2e-6)
    assume(lr)
    assume(values.get("unet_lr", lr) or values.get("text_encoder_lr", lr))
    found = imported(" ".join(told(*pair) for pair in values.items()))
    config, said = config_of(*runnable(found.overrides)), sentences(found)
    if values.get("optimizer_type") == "AdaFactor":
        assert config.optimizer.lr is None
        assert config.lr_scheduler.name == "adafactor"
        others = {name for name in values if name.startswith("lr_")}
        assert all(name in said for name in others if values[name] != options()[name].default)
        return
    assert config.optimizer.lr == lr
    for part in ("unet", "text_encoder"):
        rate = values.get(f"{part}_lr")
        assert getattr(config.optimizer, f"{part}_lr") == (rate or None)
        assert getattr(config.network, f"train_{part}") == (rate != 0)
    if values.get("optimizer_type", "").endswith("ScheduleFree"):
        assert config.lr_scheduler.name == "constant"
        return
    assert config.lr_scheduler.name == values.get("lr_scheduler", "constant")
    defaults = {"lr_scheduler_min_lr_ratio": 0.0}
    for name in names[5:]:
        ours = setting(config, options()[name].ours)
        value = values.get(name, defaults.get(name, options()[name].default))
        if name in values and name in said:
            continue
        uses = ours is not None and not (name == "lr_scheduler_min_lr_ratio" and ours > 0.01)
        if uses and config.lr_scheduler.name != "polynomial":
            assert ours == pytest.approx(value), name
    if config.lr_scheduler.name == "polynomial":
        assert config.lr_scheduler.min_lr_ratio == pytest.approx(1e-7 / lr)
        assert config.lr_scheduler.power == values.get("lr_scheduler_power", 1)


# --- one case of each kind ---

CASES: list[tuple[str, list[str], list[str]]] = [  # options; overrides; words of sentences
    ("--lr_scheduler=cosine_with_restarts", ["lr_scheduler.num_cycles=1"], []),
    ("--lr_scheduler=polynomial", ["lr_scheduler.power=1"], []),
    ("--lr_scheduler=warmup_stable_decay --lr_warmup_steps=20", ["lr_scheduler.decay_steps=0"], []),
    ("--lr_scheduler=inverse_sqrt --lr_warmup_steps=5 --lr_scheduler_timescale=50",
     ["lr_scheduler.timescale=50"], []),
    ("--optimizer_type=PagedAdamW", ["optimizer=pagedadamw32bit", "optimizer.lr=0.0003"], []),
    ("--optimizer_type=NAdam --unet_lr=1e-3",
     ["optimizer._target_=torch.optim.NAdam", "optimizer.unet_lr=0.001"], []),
    ("--optimizer_type=my_package.Sgd", ["optimizer=adamw", "optimizer.lr=0.0003"],
     ["no recipe of ours builds it"]),
    ("--optimizer_type=emonavi.emonavi.EmoNavi", ["optimizer=emonavi", "optimizer.lr=0.0003"],
     ["pytorch_optimizer.EmoNavi", "gets the loss at every step"]),
    ('--vae="" --reg_data_dir=""', [], []),
    ("--keep_tokens=2", ["dataset.keep_tokens=0"], ["keep_tokens=2: nothing shuffles"]),
    ("--scale_weight_norms=0", [], []),
    ("--bucket_no_upscale --max_bucket_reso=1584", ["dataset.bucket_no_upscale=true"],
     ["max_bucket_reso=1584"]),
    ("--max_bucket_reso=1584", ["dataset.max_bucket_reso=1600"], ["1584 becomes 1600"]),
    ("--lr_scheduler=cosine --lr_scheduler_num_cycles=4", ["lr_scheduler=cosine"],
     ["lr_scheduler_num_cycles=4: cosine has none"]),
    ("--lr_scheduler=constant --lr_warmup_steps=100", ["lr_scheduler=constant"],
     ["which is an error in kohya's trainer"]),
    ("--optimizer_type=AdaFactor --lr_scheduler=cosine_with_restarts",
     ["optimizer=adafactor_auto", "lr_scheduler=adafactor"],
     ["learning_rate=0.0003", "lr_scheduler=cosine_with_restarts: Adafactor's own rule"]),
    ("--optimizer_type=Adafactor --optimizer_args relative_step=False warmup_init=True",
     ["optimizer=adafactor_auto", "optimizer.args.relative_step=true"], ["switches it on"]),
    ("--optimizer_type=Adafactor --optimizer_args relative_step=False scale_parameter=False",
     ["optimizer=adafactor", "optimizer.lr=0.0003"], []),
    ("--optimizer_type=SGDScheduleFree --lr_scheduler=cosine --lr_warmup_steps=50",
     ["lr_scheduler=constant"],
     ["lr_scheduler=cosine: a schedule-free class", "lr_warmup_steps=50"]),
    ("--text_encoder_lr 5e-5 1e-5", ["optimizer.text_encoder_lr=5e-05"],
     ["the first for all text encoders"]),
    ("--text_encoder_lr=0", ["network.train_text_encoder=false"], ["with zeros"]),
    ("--network_args down_lr_weight=1,,1,1,1,1,1,1,1,1,1,1",
     ["network.down_lr_weight=[1.0,0.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0]"], []),
    ("--network_args up_lr_weight=0.5,0.25",
     [f"network.up_lr_weight=[0.5,0.25{',1.0' * 10}]"], ["2 weights for 12 blocks"]),
    (f"--network_args conv_block_dims={','.join('4' * 25)}", [], ["conv_block_dims"]),
    ("--network_args conv_alpha=1 algo=lora loraplus_lr_ratio=16", [],
     ["conv_alpha=1: alone it is not looked at", "algo=lora: networks.lora has no", "LoRA+"]),
    ("--network_weights=a.safetensors --dim_from_weights --network_dropout=0.1",
     ["network.dim_from_weights=true"],
     ["network_dropout=0.1: with dim_from_weights", "network_dim"]),
    ("--min_timestep=400 --max_timestep=300",
     ["loss.min_timestep=300", "loss.max_timestep=301"], ["only timestep 300"]),
    ("--zero_terminal_snr", [], ["zero_terminal_snr=True"]),
    ("--no_half_vae --full_bf16", [], ["no_half_vae: the VAE always", "full_bf16=True"]),
    ("--caption_extention=tags", ["dataset.caption_extension=.tags"], []),
    ("--dataset_config=data.toml", [], ["dataset_config=data.toml"]),
    ("--caption_dropout_every_n_epochs=8 --max_train_epochs=4", ["train.epochs=4"],
     ["caption_dropout_every_n_epochs=8", "max_train_steps=100: max_train_epochs wins"]),
    ("--torch_compile --network_dropout=0.1", ["network.dropout=0.1"], ["torch_compile: speed"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "overrides", "words"), CASES, ids=[case[0][:60] for case in CASES]
)
def test_a_case_of_each_kind(more: str, overrides: list[str], words: list[str]) -> None:
    found = imported(f"{COMMAND} {more}")
    assert set(overrides) <= set(found.overrides)
    for word in words:
        assert word in sentences(found)
    if "network_weights" not in more:  # a file that is read
        imported_config(f"{COMMAND} {more}")


def test_options_of_sdxl() -> None:
    found = imported(f"{COMMAND} --clip_skip=2 --network_args mid_lr_weight=0", family="sdxl")
    assert {"base=sdxl", "network.mid_lr_weight=[0.0,1.0,1.0]"} <= set(found.overrides)
    assert "clip_skip=2: SDXL always" in sentences(found)
    config = config_of(*runnable(found.overrides))
    assert config.train.clip_skip == 1
    assert config.network.mid_lr_weight == (0.0, 1.0, 1.0)
    assert "sdxl=True" not in sentences(found)


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("--network_dim=many", "--network_dim"),
        ("--network_args conv_dim=x", "network_args conv_dim"),
        ("--network_args down_lr_weight=0.5", "network_args down_lr_weight"),
        ("--resolution=512x768", "--resolution"),
        ("--max_train_steps=10.5", "--max_train_steps"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_by_name(more: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        imported(more)
    assert place in caught.value.problems[0].where


def test_the_prompts_of_previews_are_taken(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(
        "# a comment\nmychar, garden --n blurry, low --w 515 --h 768 --d 1\n"
        "mychar, garden --n blurry, low --w 515 --h 768 --d 2\nmychar at the beach\n"
    )
    found = read(tmp_path, "a.sh", f"train_network.py {COMMAND} --sample_prompts=prompts.txt")
    first, second = config_of(*runnable(found.overrides)).prompts.prompts
    assert (first.text, first.negative, first.width, first.height) == (
        "mychar, garden",
        "blurry, low",
        512,
        768,
    )
    assert (second.text, second.width) == ("mychar at the beach", 512)
    assert PLACEHOLDER_PROMPT not in sentences(found)


def test_a_placeholder_prompt_is_said() -> None:
    found = imported(f"{COMMAND} --sample_prompts=gone.txt")
    assert f"prompts.prompts.a.text={PLACEHOLDER_PROMPT}" in found.overrides
    assert "is a placeholder, and sample_prompts=gone.txt was not read" in sentences(found)


# --- scripts ---

SCRIPTS = {
    "comment.sh": "# train_network.py --help shows all options\n"
    "accelerate launch train_network.py --network_dim=7 # --network_dim=9\n",
    "continued.sh": "accelerate launch train_network.py \\\n  --network_dim=7 \\\n  --seed=1\n",
    "commented_inside.sh": "accelerate launch train_network.py \\\n # --seed=5 \\\n"
    " --network_dim=7\n",
    "wrapped.txt": "accelerate launch --num_processes 1\n/x/train_network.py --network_dim\n7\n"
    "--seed 1\n\nsome words about it\n",
    "variables.sh": 'DIM=3\nDIM="7"\nexport OUT=$HOME/x\nMORE=(--seed=1\n'
    '  --caption_prefix="a b")\n'
    'CUDA_VISIBLE_DEVICES=0 accelerate launch train_network.py --network_dim=${DIM} '
    '--learning_rate=${LR:-1e-5} "${MORE[@]}" "$@" 2>&1 | tee log.txt\n',
    "variables.bat": "@echo off\nrem train_network.py\nset DIM=7\nset \"WORDS=a b\"\n"
    'accelerate launch train_network.py ^\n --network_dim=%DIM% --caption_prefix="%WORDS%" ^\n'
    ' --logging_dir="D:\\my logs" --lr_warmup_steps=10%\npause\n',
    "variables.ps1": '# settings\n$dim = 7 # the rank\n$words="a b"\n$Env:HF_HOME = "x"\n'
    "$ext_args = [System.Collections.ArrayList]::new()\n[void]$ext_args.Add('--x')\n"
    '& accelerate launch --multi_gpu "./sd-scripts/train_network.py" `\n --network_dim=$dim `\n'
    ' --caption_prefix="$words" --train_data_dir=\'D:\\it\'\'s\' $ext_args\n',
    "notebook.txt": "!accelerate launch train_network.py --network_dim 7\n",
    "options.txt": "--network_dim=7\n--seed=1\n",
    "abbreviated.sh": "python sd/train_network.py --network_di 7 --max_train_epoch 3\n",
    "two.sh": "python train_network.py --network_dim 7\npython train_network.py --network_dim 9\n",
    "flag.toml": 'network_dim = 7\ntext_encoder_lr = [5e-05, 5e-05]\ndynamo_backend = "no"\n',
    "nested.toml": "[general_args.args]\nseed = 1\n[network_args.args]\nnetwork_dim = 7\n"
    "[network_args.args.network_args]\nconv_dim = 5\n[optimizer_args.args]\nlearning_rate = 7e-5\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_of_every_kind_are_read(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, name, SCRIPTS[name])
    assert "network.dim=7" in found.overrides
    assert not [line for line in found.lost if "no option" in line or "belongs to no" in line]


def test_what_scripts_say_besides(tmp_path: Path) -> None:
    files = {name: read(tmp_path, name, text) for name, text in SCRIPTS.items()}
    assert {"seed=1", "dataset.caption_prefix=a b", "optimizer.lr=1e-05"} <= set(
        files["variables.sh"].overrides
    )
    assert {"dataset.caption_prefix=a b"} <= set(files["variables.bat"].overrides)
    assert "dataset.caption_prefix=a b" in files["variables.ps1"].overrides
    assert any("$ext_args: the script works it out" in line for line in files["variables.ps1"].lost)
    assert any("multi_gpu" in line for line in files["variables.ps1"].not_needed)
    assert "seed=1" in files["wrapped.txt"].overrides
    assert "train.epochs=3" in files["abbreviated.sh"].overrides
    assert any("1 more commands" in line for line in files["two.sh"].lost)
    assert "optimizer.text_encoder_lr=5e-05" in files["flag.toml"].overrides
    assert any("base=sdxl" in line for line in files["flag.toml"].notes)
    assert {"seed=1", "network.conv_dim=5", "optimizer.lr=7e-05"} <= set(
        files["nested.toml"].overrides
    )


@pytest.mark.parametrize("flags", ["--multi_gpu", "--num_machines 1 --multi_gpu", ""])
def test_flags_before_the_script_do_not_swallow_it(flags: str, tmp_path: Path) -> None:
    found = read(tmp_path, "a.sh", f"accelerate launch {flags} sdxl_train_network.py --seed=1\n")
    assert found.overrides[0] == "base=sdxl"


def test_several_processes_are_not_the_same_training(tmp_path: Path) -> None:
    line = "accelerate launch --num_processes=4 train_network.py --seed=1"
    assert any("num_processes=4" in said for said in read(tmp_path, "a.sh", line).lost)


@pytest.mark.parametrize(
    ("name", "line", "variable"),
    [
        ("a.sh", "train_network.py --learning_rate=$LR", "$LR"),
        ("a.sh", "train_network.py --seed=$(date +%s)", "$(date +%s)"),
        ("a.bat", "train_network.py --learning_rate=%LR%", "%LR%"),
        ("a.ps1", "train_network.py --learning_rate=$lr", "$lr"),
    ],
)
def test_variables_without_a_value_are_named(
    name: str, line: str, variable: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, name, f"accelerate launch {line}\n")
    assert f"the variable {variable}" in caught.value.problems[0].found


def test_a_config_file_beside_the_script_is_read(tmp_path: Path) -> None:
    (tmp_path / "gui.toml").write_text('network_dim = 8\nseed = 5\ntrain_data_dir = "img"\n')
    for written in ("./gui.toml", "gui", str(tmp_path / "gui")):
        line = f"accelerate launch train_network.py --config_file={written} --network_dim=9"
        overrides = read(tmp_path, "a.sh", line).overrides
        assert {"network.dim=9", "seed=5", "dataset.dir=img"} <= set(overrides)


def test_a_config_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_lora.toml"):
        read(tmp_path, "a.sh", "train_network.py --config_file /outputs/config_lora.toml")


GUI = {
    "LoRA_type": "Kohya LoCon",
    "max_resolution": "768,768",
    "optimizer": "AdamW8bit",
    "optimizer_args": "weight_decay=0.1 betas=.9,.99",
    "network_dim": 24,
    "network_alpha": 12,
    "conv_dim": 8,
    "conv_alpha": 4,
    "learning_rate": 0.0001,
    "text_encoder_lr": 5e-05,
    "unet_lr": 0.0001,
    "lr_scheduler": "cosine",
    "lr_scheduler_num_cycles": "",
    "lr_warmup": 10,
    "epoch": 6,
    "max_train_epochs": 0,
    "max_token_length": "75",
    "xformers": "sdpa",
    "enable_bucket": True,
    "shuffle_caption": False,
    "down_lr_weight": "",
    "mid_lr_weight": "0.5",
    "additional_parameters": '--caption_prefix "a b" --min_snr_gamma=5',
    "stop_text_encoder_training": 0,
    "train_batch_size": 2,
    "sdxl": False,
    "LyCORIS_preset": "full",
}


def test_a_preset_of_the_gui_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, "preset.json", json.dumps(GUI))
    config = config_of(*runnable(found.overrides))
    assert config.dataset.resolution == (768, 768)
    assert (config.network.dim, config.network.conv_dim, config.network.conv_alpha) == (24, 8, 4)
    assert config.network.mid_lr_weight == (0.5,)
    assert config.optimizer.name == "adamw8bit"
    assert config.optimizer.args["betas"] == [0.9, 0.99]
    assert (config.train.epochs, config.lr_scheduler.warmup_steps) == (6, 0.1)
    assert (config.dataset.caption_prefix, config.loss.min_snr_gamma) == ("a b", 5)
    assert any("LyCORIS_preset" in said for said in found.not_needed)


WINDOWS = r"""
@echo off
accelerate launch --num_cpu_threads_per_process=2 "train_network.py" ^
  --pretrained_model_name_or_path="C:\models\anime full.safetensors" ^
  --train_data_dir="D:\my pictures" --resolution=512,768 --enable_bucket ^
  --learning_rate 1e-4 --unet_lr 1e-4 --text_encoder_lr 0 ^
  --network_module=networks.lora --network_dim=32 --network_alpha=16 ^
  --network_args "conv_dim=8" "algo=lora" ^
  --optimizer_type=Lion --optimizer_args weight_decay=0.01 "betas=0.9,0.95" ^
  --lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 3 --lr_warmup_steps=10% ^
  --max_train_epochs=10 --min_timestep=100 --xformers
"""


def test_a_windows_command_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, "train.bat", WINDOWS)
    assert r"base.path=C:\models\anime full.safetensors" in found.overrides
    assert {
        "dataset.resolution=[512,768]",
        "network.train_text_encoder=false",
        "network.conv_alpha=1.0",
        "optimizer=lion",
        "optimizer.args.betas=[0.9,0.95]",
        "lr_scheduler.warmup_steps=0.1",
        "train.epochs=10",
        "train.batch_size=1",
    } <= set(found.overrides)
    assert any(said.startswith("xformers") for said in found.not_needed)
    assert "train.batch_size=1" in found.assumed
    assert not any("max_steps" in said for said in found.assumed)


def test_what_a_command_leaves_out_is_the_class_default_and_not_the_recipes() -> None:
    config = imported_config("--optimizer_type lion --learning_rate=1e-5")
    assert config.optimizer.args == {}
    assert config.optimizer.text_encoder_lr is None


@pytest.mark.parametrize(
    ("written", "recipe"),
    [
        ("DAdaptation", "dadaptadampreprint"),
        ("came_pytorch.CAME", "came"),
        ("prodigyplus.ProdigyPlusScheduleFree", "prodigyplus"),
        ("Adafactor", "adafactor_auto"),
    ],
)
def test_kohyas_names_of_classes(written: str, recipe: str) -> None:
    assert f"optimizer={recipe}" in imported(f"--optimizer_type={written}").overrides


def test_hostile_paths_reach_the_config_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "my, 'own' [pictures] ${seed}"
    overrides = imported(f"--vae={shlex.quote(str(folder))}").overrides
    assert config_of(*runnable(overrides)).base.vae == str(folder)


@pytest.mark.parametrize("content", ["", "hello", "a = [", "seed ="])
@pytest.mark.parametrize("suffix", [".sh", ".toml", ".json"])
def test_a_file_without_options_is_refused(tmp_path: Path, content: str, suffix: str) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_text(content)
    with pytest.raises(ConfigError, match="train_network"):
        read_training(file)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.sh").write_text(f"train_network.py {COMMAND} --keep_tokens=2")
    assert import_command.main([str(tmp_path / "train.sh")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{program()} base=sd15 ")
    assert "not looked at by kohya's trainer: keep_tokens=2" in printed.err
    assert "is a placeholder" in printed.err
    assert import_command.main([str(tmp_path / "absent.sh")]) == 2
    assert "absent.sh" in capsys.readouterr().err
    assert import_command.main([]) == 2
    assert f"write {program()} import FILE" in capsys.readouterr().err


# --- the commands of the published comparisons, with their settings (studies A and C) ---

STUDY_A = (
    "--enable_bucket --bucket_no_upscale --bucket_reso_steps=64 --resolution=1024,1024 "
    '--pretrained_model_name_or_path="model.safetensors" --vae="" --train_data_dir="{data}" '
    '--reg_data_dir="{reg}" --caption_extension=.txt --keep_tokens=2 --train_batch_size=2 '
    "--max_train_epochs=10 --network_module=networks.lora --network_dim=16 --network_alpha=8 "
    '--network_args "conv_dim=8" "conv_alpha=1" --unet_lr={unet} --text_encoder_lr={te} '
    "--learning_rate={unet} --lr_scheduler=cosine_with_restarts --lr_scheduler_num_cycles=20 "
    "--lr_warmup_steps={warmup} --mixed_precision=fp16 --save_precision=fp16 --seed=1234 "
    "--cache_latents --clip_skip=2 --mem_eff_attn --save_every_n_epochs=1 --output_dir=out "
    '--sample_prompts="{data}/prompts.txt" --training_comment="" --optimizer_type={kind}'
)
STUDY_C = (
    '--enable_bucket --resolution=512,512 --pretrained_model_name_or_path="model.safetensors" '
    '--vae="" --train_data_dir="{data}" --reg_data_dir="" --caption_extension=.txt '
    "--keep_tokens=3 --train_batch_size=6 --max_train_epochs=10 --network_module=networks.lora "
    "--network_dim=128 --network_alpha=32 --network_args conv_dim=32 conv_alpha=16 "
    "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1 mid_lr_weight=0 up_lr_weight=1,1,1,1,1,1,1,1,1,1,1,1 "
    "--unet_lr={unet} --text_encoder_lr={te} --learning_rate={unet} --lr_scheduler=cosine "
    "--multires_noise_iterations=8 --multires_noise_discount=0.3 --scale_weight_norms=1 "
    "--mixed_precision=fp16 --save_precision=fp16 --seed=1234 --cache_latents --clip_skip=2 "
    "--xformers --optimizer_type={kind}"
)
STUDIES = [
    (STUDY_A, "AdamW", 1e-4, 5e-5, "adamw", "cosine_with_restarts"),
    (STUDY_A, "Lion", 1e-4, 5e-5, "lion", "cosine_with_restarts"),
    (STUDY_A, "AdaFactor", 1e-4, 5e-5, "adafactor_auto", "adafactor"),
    (STUDY_A, "DAdaptation", 1, 1, "dadaptadampreprint", "cosine_with_restarts"),
    (STUDY_A, "SGDNesterov", 1e-4, 5e-5, "sgdnesterov", "cosine_with_restarts"),
    (STUDY_C, "Lion", 1e-4, 5e-5, "lion", "cosine"),
    (STUDY_C, "DAdaptLion", 1, 1, "dadaptlion", "cosine"),
]


@pytest.mark.parametrize(("text", "kind", "unet", "te", "recipe", "schedule"), STUDIES)
def test_the_studies_commands_are_planned_as_imported(
    text: str,
    kind: str,
    unet: float,
    te: float,
    recipe: str,
    schedule: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, reg = tmp_path / "data", tmp_path / "reg"
    images = resources.asset("mirelle") / "5_mirelle"
    for folder, name in ((data, "2_mychar"), (reg, "1_girl")):
        shutil.copytree(images, folder / name)
    warmup = 0 if kind == "AdaFactor" else 10
    options_ = text.format(data=data, reg=reg, unet=unet, te=te, warmup=warmup, kind=kind)
    found = imported(options_)
    config = config_of(*runnable(found.overrides))
    assert (config.optimizer.name, config.lr_scheduler.name) == (recipe, schedule)
    assert config.train.max_grad_norm == 1.0
    assert "is a placeholder" in sentences(found)
    # As printed, but for the checkpoint, which is the embedded base.
    overrides = [
        override.replace("base=sd15", "base=tiny")
        for override in found.overrides
        if not override.startswith("base.path=")
    ]
    assert plan.main([*overrides, "train.mixed_precision=no"]) == 0
    assert recipe in capsys.readouterr().out
