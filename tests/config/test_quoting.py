"""File names of any letters are file names; what cannot be read ends in words to act on."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.cli import main as command_line
from optbench.cli.commands import split_bare_words
from optbench.cli.render.plan import with_named_files
from optbench.config.compose import compose_runs, flags_first
from optbench.config.composer import parse_override
from optbench.config.quoting import for_shell, place_keys, quoted, with_quoted_places
from optbench.errors import ConfigError, Problem

NAMES = ["jörg", "猫", "a=b", "a (1)", "a[1]", "it's", "#1", "a&b", "a{b}", "10", "1e3", "a b", "!"]


def problems_of(*arguments: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose_runs(flags_first(arguments))
    return caught.value.problems


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_quoted_text_is_read_back_as_it_is(text: str) -> None:
    assert parse_override(f"key={quoted(text)}").value() == text


@pytest.mark.parametrize("text", ["a\\b", "a\\", "a\\'b", "'", "\\\\", "C:\\data\\new", "a\\\\'"])
def test_backslashes_stay_what_they_are(text: str) -> None:
    assert parse_override(f"key={quoted(text)}").value() == text
    (lora,) = with_named_files([text])
    assert parse_override(lora).value() == [text]


@pytest.mark.parametrize("text", ["a'b c", "plain", 'a"b', "a$b'c", "jörg"])
def test_a_word_for_a_shell_is_read_back_as_it_is(text: str) -> None:
    assert shlex.split(for_shell(text)) == [text]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(
    fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(fake_assets / "mirelle", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (run,) = compose_runs(flags_first([f"dataset.dir={name}"])).runs
    assert run.config.dataset.dir == name


def test_settings_that_name_files_are_known_by_their_type() -> None:
    assert {"base.path", "base.vae", "dataset.dir", "dataset.reg_dir", "network.weights"} <= (
        place_keys()
    )
    assert {"validate.dir", "runs_dir", "cache_dir", "source", "lora", "wildcards_dir", "dir"} <= (
        place_keys()
    )
    assert not {"dataset.class_tokens", "optimizer.target", "sweep_name"} & place_keys()
    untouched = [
        "runs_dir=a,b",
        "runs_dir=${x}",
        "runs_dir=null",
        "optimizer=jörg",
        "-m",
        "runs_dir=",
    ]
    assert with_quoted_places(untouched) == untouched


def test_a_text_that_hydra_cannot_read_is_one_problem_with_the_line_to_type(
    fake_assets: Path,
) -> None:
    arguments = ["prompts=folder", "prompts.prompts.a.text=mädchen"]
    (problem,) = problems_of(*arguments)
    assert problem.where == "prompts.prompts.a.text"
    match = re.fullmatch(r"write (.+)", problem.fix)
    assert match
    (run,) = compose_runs([arguments[0], *shlex.split(match[1])]).runs
    assert run.config.prompts.prompts[0].text == "mädchen"


def test_several_values_are_said_with_the_command_that_was_typed(fake_assets: Path) -> None:
    with pytest.raises(ConfigError, match=r"optbench plan -m seed=1,2 \.\.\."):
        compose_runs(["seed=1,2"], command="plan")
    with pytest.raises(ConfigError) as caught:
        compose_runs(["dataset.caption_prefix=a, b"], command="plan")
    assert "'dataset.caption_prefix=a, b'" in str(caught.value)
    assert "\"dataset.caption_prefix='a, b'\"" in str(caught.value)


def test_home_is_home_in_every_setting(
    fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(fake_assets / "mirelle", tmp_path / "data")
    arguments = ["dataset.dir=~/data", "runs_dir=~/runs", "metric.metrics.embedded.path='~/x'"]
    (run,) = compose_runs(flags_first(arguments)).runs
    config = run.config
    assert config.dataset.dir == str(tmp_path / "data")
    assert config.runs_dir == str(tmp_path / "runs")
    assert config.cache_dir == str(tmp_path / "runs" / ".cache")
    assert config.metric.metrics["embedded"]["path"] == str(tmp_path / "x")


@pytest.mark.parametrize("key", ["runs_dir", "cache_dir", "dataset.dir", "base.path", "base.vae"])
@pytest.mark.parametrize("value", ["", "' '"])
def test_an_empty_name_is_a_mistake(fake_assets: Path, key: str, value: str) -> None:
    assert [problem.where for problem in problems_of(f"{key}={value}")] == [key]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n\tb: 1\n", ("mine.yaml line 2", "a tab")),
        ("a: [1\n", ("mine.yaml line", "expected")),
        ("a: ${x\n", ("train/mine.yaml", "no viable alternative")),
        ("\xff\xfe", ("--config-dir", "UTF-8")),
    ],
)
def test_a_file_that_is_no_yaml_is_named(
    fake_assets: Path, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "own" / "train").mkdir(parents=True)
    (tmp_path / "own" / "train" / "mine.yaml").write_bytes(text.encode("latin-1"))
    (problem,) = problems_of("--config-dir", str(tmp_path / "own"), "train=mine")
    assert all(word in str(problem) for word in words)


def test_a_name_longer_than_any_file_system_has_is_said_in_words(fake_assets: Path) -> None:
    (problem,) = problems_of(f"dataset.dir={'a' * 300}")
    assert "too long" in problem.found


def test_a_word_with_an_equals_sign_may_be_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.safetensors").write_bytes(b"")
    words = ["a=b.safetensors", "c=d.safetensors", "-m"]
    assert split_bare_words(words) == (["a=b.safetensors"], ["c=d.safetensors", "-m"])


def test_a_terminal_without_a_letter_gets_its_code(
    fake_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    assert command_line.main(["plan", "runs_dir=w/mü [/runs]"]) == 0
    sys.stdout.flush()
    assert b"w/m\\xfc [/runs]/single" in screen.getvalue()
