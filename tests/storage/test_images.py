"""Images are decoded under one budget of pixels, whatever the number of threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from optbench.storage import images


def test_threads_share_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(path)
    monkeypatch.setattr(images, "_DECODED", images._Budget(250))
    lock = threading.Lock()
    counts = [0, 0]  # now, most

    def decode(_: int) -> None:
        with images.opened(path):
            with lock:
                counts[0] += 1
                counts[1] = max(counts)
            time.sleep(0.01)
            with lock:
                counts[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(24)))
    assert counts == [0, 2]  # two of a hundred pixels fit


def test_a_larger_image_waits_until_it_is_alone_and_one_thread_may_hold_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 100)).save(path)
    monkeypatch.setattr(images, "_DECODED", images._Budget(250))
    with images.opened(path), images.opened(path) as image:
        assert image.size == (100, 100)


def test_what_is_no_rendered_image_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (8193, 8192)).save(path)
    with pytest.raises(Image.DecompressionBombError), images.opened_rendered(path):
        pass
    with pytest.raises(OSError, match="a folder has its name"), images.opened(tmp_path):
        pass
