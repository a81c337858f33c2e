"""One thread, no network, no traces: what every test can rely on."""

from __future__ import annotations

import os

# Before anything imports torch: two thread pools on two cores are 15 times slower than one
# thread, and the last bits of a sum depend on the number of threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
import socket
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.builders.shared import SharedFolders

# No test asserts seconds: an example may take as long as a busy machine makes it. Examples depend
# on the test alone, so that what fails once fails again; --hypothesis-profile=many finds new ones.
hypothesis.settings.register_profile(
    "few", deadline=None, max_examples=15, derandomize=True, database=None
)
hypothesis.settings.register_profile(
    "many", deadline=None, max_examples=int(os.environ.get("OPTBENCH_EXAMPLES", "150"))
)
hypothesis.settings.load_profile("few")

_LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold torch to one thread, refuse the network, and go back to the working directory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        is_local = self.family == socket.AF_UNIX or address[0] in _LOCAL
        if not is_local:
            raise AssertionError(f"a test wants to reach {address}; tests have no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Fail a test in which something draws from Python's or numpy's global generator.

    Product code draws from generators with an address (`optbench.rng`) only.
    """
    before = _global_states()
    result = yield
    after = _global_states()
    drawn = [name for name, state in before.items() if after.get(name) != state]
    assert not drawn, f"the global generator of {' and '.join(drawn)} was used"
    return result


def _global_states() -> dict[str, object]:
    states: dict[str, object] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = (name, keys.tobytes(), *rest)
    return states


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    """Return the folders that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    root = (base.parent if is_worker else base) / "shared"
    root.mkdir(exist_ok=True)
    return SharedFolders(root)


@pytest.fixture
def fake_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the embedded base and character: their folders, without real weights."""
    from PIL import Image

    from optbench.storage import resources

    assets = tmp_path / "assets"
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (assets / "tiny" / part).mkdir(parents=True)
        (assets / "tiny" / part / "config.json").write_text("{}")
    (assets / "tiny" / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8]}')
    pictures = assets / "mirelle" / "3_girl"
    pictures.mkdir(parents=True)
    for index, size in enumerate([(512, 768), (512, 768), (768, 512)]):
        Image.new("RGB", size, (40 * index, 90, 200)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"mirelle, 1girl, smile, number {index}")
    for index, split in enumerate(("held_out", "ood", "others")):
        folder = assets / "validation" / split / "1_girl"
        folder.mkdir(parents=True)
        Image.new("RGB", (512, 768), (90, 40 * index, 10)).save(folder / "1.png")
        (folder / "1.txt").write_text(f"1girl, {split}")
    monkeypatch.setattr(resources, "asset", lambda name: assets / name)
    return assets
