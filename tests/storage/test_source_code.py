"""The source of a class of one's own is its identity; an installed package's is its version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optbench.storage.source_code import source_fingerprint


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder from which modules can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "pytest.fixture",
        "optbench.optim.build.build_optimizer",
        "os.path.join",
        "no_such_module_anywhere.Mine",
    ],
)
def test_what_is_installed_or_not_there_has_none(target: str) -> None:
    assert source_fingerprint(target) is None


def test_packages_of_another_environment_are_installed_too(mine: Path) -> None:
    place = mine / "other" / "lib" / "site-packages"
    place.mkdir(parents=True)
    (place / "their_optimizer.py").write_text("class Theirs: lr = 1\n")
    sys.path.insert(0, str(place))
    try:
        assert source_fingerprint("their_optimizer.Theirs") is None
    finally:
        sys.path.remove(str(place))


def test_it_follows_the_bytes_of_the_file(mine: Path) -> None:
    (mine / "my_optimizer.py").write_text("class Mine: lr = 1\n")
    first = source_fingerprint("my_optimizer.Mine")
    assert first is not None
    assert first == source_fingerprint("my_optimizer.Mine")
    (mine / "my_optimizer.py").write_text("class Mine: lr = 100\n")
    assert source_fingerprint("my_optimizer.Mine") not in (first, None)
    assert "my_optimizer" not in sys.modules, "nothing was imported"


@pytest.mark.parametrize(
    "edited",
    ["my_package/__init__.py", "my_package/sub/steps.py", "my_package/helpers.py", "my_maths.py"],
)
def test_it_follows_every_file_of_ones_own_that_it_imports(mine: Path, edited: str) -> None:
    texts = {
        "my_package/__init__.py": "",
        "my_package/sub/__init__.py": "",
        "my_package/sub/steps.py": "import torch\nfrom ..helpers import scale\nclass Mine: pass\n",
        "my_package/helpers.py": "from my_maths import double\nscale = double\n",
        "my_maths.py": "def double(x): return 2 * x\n",
        "unrelated.py": "x = 1\n",
    }
    for name, text in texts.items():
        path = mine / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    first = source_fingerprint("my_package.sub.steps.Mine")
    (mine / "unrelated.py").write_text("x = 2\n")
    assert source_fingerprint("my_package.sub.steps.Mine") == first
    (mine / edited).write_text(texts[edited] + "# edited\n")
    assert source_fingerprint("my_package.sub.steps.Mine") != first


def test_a_file_that_is_no_python_still_counts(mine: Path) -> None:
    (mine / "broken.py").write_text("class Mine(:\n")
    assert source_fingerprint("broken.Mine") is not None
