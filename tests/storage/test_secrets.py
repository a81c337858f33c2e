"""Typed secrets never reach a file, a page or a log; nothing else is changed."""

from __future__ import annotations

import dataclasses

import pytest

from optbench.config.explain import types_of
from optbench.schema import PlotOptions, RegularizeOptions, ResizeOptions, RunConfig
from optbench.storage.secrets import hide_in_arguments, hide_in_settings, is_secret

SECRET = "S3cretS3cretS3cret"


@pytest.mark.parametrize(
    "argument",
    [
        f"+hydra.job.env_set.HF_TOKEN={SECRET}",
        f"++hydra.job.env_set.ANYTHING={SECRET}",
        f"+hydra.job.env_set={{HF_TOKEN:{SECRET},A:'{SECRET}'}}",
        f"HF_TOKEN={SECRET}",
        f"WANDB_API_KEY={SECRET}",
        f"MY_SECRET={SECRET}",
        f"PASSWORD={SECRET}",
        f"+tracker.args.wandb.api_key={SECRET}",
        f"+tracker.args.wandb.apiKey={SECRET}",
        f"+tracker.args={{wandb:{{api_key: '{SECRET} and more', mode:offline}}}}",
        f'+tracker.args.wandb={{"password":"{SECRET}"}}',
        f"--hf-token={SECRET}",
        f"base.path=https://me:{SECRET}@host/model",
        f"prompts.prompts.a.text='x hf_{SECRET}'",
        f"hf_{SECRET}",
    ],
)
def test_a_typed_secret_is_hidden_and_its_key_is_not(argument: str) -> None:
    (hidden,) = hide_in_arguments([argument])
    assert SECRET not in hidden
    assert "***" in hidden
    assert hidden.split("=")[0] == argument.split("=")[0] or "=" not in argument


@pytest.mark.parametrize(
    "argument",
    [
        "-m",
        "optimizer=adamw,lion",
        "dataset.keep_tokens=2",
        "dataset.class_tokens=girl",
        "train.max_token_length=225",
        "dataset.token_warmup_step=0.1",
        "+tracker.args.wandb.mode=offline",
        "base.path=https://huggingface.co/a/b",
        "prompts.prompts.a.text='key visual, {token:1.2}, password'",
        "dataset.dir=/data/hf_photos",
        "WANDB_API_KEY=",
        "+tracker.args.wandb.api_key=null",
    ],
)
def test_what_is_no_secret_stays(argument: str) -> None:
    assert hide_in_arguments([argument]) == [argument]


def test_no_setting_of_optbench_is_taken_for_a_secret() -> None:
    for kind in (RunConfig, ResizeOptions, RegularizeOptions, PlotOptions):
        for key, hint in types_of(kind).items():
            keys = [key]
            if dataclasses.is_dataclass(hint):
                keys += [f"{key}.{name}" for name in types_of(hint)]
            assert [name for name in keys if is_secret(name)] == []


def test_settings_keep_their_form() -> None:
    settings = {
        "tracker": {"args": {"wandb": {"api_key": SECRET, "tags": ["a"], "use_auth": True}}},
        "dataset": {"keep_tokens": 1},
        "base": {"path": f"https://me:{SECRET}@host/x"},
        "list": [{"token": SECRET}, None],
    }
    assert hide_in_settings(settings) == {
        "tracker": {"args": {"wandb": {"api_key": "***", "tags": ["a"], "use_auth": True}}},
        "dataset": {"keep_tokens": 1},
        "base": {"path": "https://***@host/x"},
        "list": [{"token": "***"}, None],
    }
