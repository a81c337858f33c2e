"""A pointer and a saved page are called what they are, wherever a file is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optbench.config.compose import compose_runs
from optbench.errors import ConfigError
from optbench.lora.initial_weights import initial_weights_of
from optbench.storage.safetensors_header import read_header
from tests.builders.network_options import PLAIN_NETWORK

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2132696762\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "Git LFS"), (PAGE, "web page"), (b"", "empty file")]
)
def test_a_file_of_weights(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_header(file)
    with pytest.raises(Exception, match=words):
        initial_weights_of(replace(PLAIN_NETWORK, weights=str(file)))


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_base_image_and_caption_are_told_together(fake_assets: Path, content: bytes) -> None:
    words = "Git LFS" if content == POINTER else "web page"
    images = fake_assets / "mirelle" / "3_girl"
    (images / "0.png").write_bytes(content)
    (images / "1.txt").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        compose_runs([])
    found = {Path(problem.where).name: problem.found for problem in caught.value.problems}
    assert found.keys() == {"0.png", "1.txt"}
    assert all(words in text for text in found.values())
    base = fake_assets / "model.safetensors"
    base.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        compose_runs([f"base.path={base}"])
