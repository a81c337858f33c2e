"""What a report costs: the time and memory to build it, to open it in Chromium, and to scroll it.

`--runs 12 --epochs 5` and `--runs 200 --epochs 20` are the two sizes that have a bar; the folder is
fabricated, with 8 pictures of 512x768 an epoch, and kept under --folder for the next time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from optbench.render import thumbnails  # noqa: E402
from tests.builders.fabricated_sweep import Shape, make_sweep  # noqa: E402
from tests.builders.viewer_page import chromium  # noqa: E402

_BUILD = """
import json, resource, sys, time
start, cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from optbench.report import build_report
build_report(Path(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu,
    "peak": peak, "torch": "torch" in sys.modules}))
"""
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_ROUNDS = 5


def main() -> None:
    """Print every figure on a line of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "report-bench")
    asked = parser.parse_args()
    sweep = asked.folder / f"{asked.runs}x{asked.epochs}"
    if not sweep.is_dir():
        _fabricate(sweep, asked.runs, asked.epochs)
    _build(sweep, "first build: small copies are there, sheets and page are not")
    _build(sweep, "second build: nothing has changed")
    _open(sweep / "report" / "index.html")


def _fabricate(sweep: Path, num_runs: int, num_epochs: int) -> None:
    shape = Shape(
        num_optimizers=num_runs // 4,
        dims=(4, 8, 16, 32),
        num_epochs=num_epochs,
        steps_per_epoch=50,
        prompts=("a", "b", "c", "d"),
        size=(512, 768),
        are_linked=True,
    )
    make_sweep(sweep, shape)
    pictures = sorted(sweep.glob("*/images/*/*.png"))
    unlike = {path.stat().st_ino: path for path in pictures}
    cpu, wall = time.process_time(), time.perf_counter()
    thumbnails.make_thumbnails(pictures)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        f"{len(pictures)} pictures under {num_runs} runs, {len(unlike)} of them different files: "
        f"a small copy takes {1000 * cpu / len(unlike):.1f} ms of CPU and "
        f"{1000 * wall / len(unlike):.1f} ms, with the writing of "
        f"{len(pictures) // len(unlike)} names each"
    )


def _build(sweep: Path, words: str) -> None:
    command = [sys.executable, "-c", _BUILD, str(sweep)]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    print(
        f"{words}: {found['wall']:.1f} s, {found['cpu']:.1f} s of CPU, "
        f"peak {found['peak']:.0f} MB, "
        f"{'with' if found['torch'] else 'without'} torch"
    )


def _open(index: Path) -> None:
    sizes = [path.stat().st_size / 1e6 for path in (index.with_name("data.js"), index)]
    print(f"data.js {sizes[0]:.2f} MB, index.html {sizes[1]:.2f} MB")
    with chromium() as browser:
        seconds, paints, cpu = [], [], []
        for _ in range(_ROUNDS):
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            start = time.perf_counter()
            page.goto(index.as_uri())
            page.locator(".vg-cell img").first.wait_for()
            seconds.append(time.perf_counter() - start)
            paints.append(page.evaluate(_FIRST_PAINT) or 0.0)
            measured = page.context.new_cdp_session(page)
            measured.send("Performance.enable")
            metrics = measured.send("Performance.getMetrics")["metrics"]
            cpu.append({one["name"]: one["value"] for one in metrics}["ProcessTime"])
            page.close()
        print(
            f"opened in {statistics.median(seconds):.2f} s (median of {_ROUNDS}, "
            f"{min(seconds):.2f} to {max(seconds):.2f}); first paint after "
            f"{statistics.median(paints) / 1000:.2f} s; the page's process took "
            f"{statistics.median(cpu):.2f} s of CPU, its start included"
        )
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        client = page.context.new_cdp_session(page)
        before = _renderers(browser)
        page.goto(f"{index.as_uri()}#v=1&rows=run&cols=epoch&slider=shot")
        page.locator(".vg-cell img").first.wait_for()
        _scroll(page)
        client.send("HeapProfiler.collectGarbage")
        heap = client.send("Runtime.getHeapUsage")["usedSize"] / 1e6
        own = [size for pid, size in _renderers(browser).items() if pid not in before]
        num_images = page.locator("#viewer img").count()
        print(
            f"after scrolling through: script heap {heap:.0f} MB, the page's process "
            f"{max(own or _renderers(browser).values()):.0f} MB (PSS), {num_images} pictures and "
            f"{page.evaluate('document.querySelectorAll(`*`).length')} elements in the document"
        )


def _scroll(page: Any) -> None:
    """Scroll the whole table in steps of a screen and print how long frames took."""
    times = page.evaluate(
        """async () => {
          const grid = document.querySelector('.vg'), times = [];
          let before = performance.now();
          for (let top = 0; top < grid.scrollHeight; top += grid.clientHeight / 2) {
            grid.scrollTop = top;
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            const now = performance.now();
            times.push((now - before) / 2);
            before = now;
          }
          return times;
        }"""
    )
    ordered = sorted(times)
    print(
        f"scrolled {len(times)} half screens: a frame takes {statistics.median(ordered):.0f} ms, "
        f"19 of 20 at most {ordered[int(0.95 * len(ordered))]:.0f} ms"
    )


def _renderers(browser: Any) -> dict[int, float]:
    """Return the memory of every page's process in MB: its own, and its part of what is shared."""
    session = browser.new_browser_cdp_session()
    found = {}
    for process in session.send("SystemInfo.getProcessInfo")["processInfo"]:
        if process["type"] == "renderer":
            text = Path(f"/proc/{process['id']}/smaps_rollup").read_text(encoding="ascii")
            size = next(line for line in text.splitlines() if line.startswith("Pss:"))
            found[int(process["id"])] = int(size.split()[1]) / 1000
    return found


if __name__ == "__main__":
    main()
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s of CPU")
