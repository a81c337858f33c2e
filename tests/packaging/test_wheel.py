"""A wheel, installed apart from this checkout, finds conf/, sweep/ and the embedded assets."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation, so that nothing is fetched.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that holds the wheel and sees our other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Other packages come from here; a checkout installed there as editable is not seen, because
    # a .pth file's own lines do not make Python read the .pth files of the folder they name.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(python: Path, *arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_that_is_not_code_is_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "sweep", "src/optbench"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_dir() or "__pycache__" in file.parts:
                continue
            inside = file.relative_to(ROOT).as_posix().removeprefix("src/optbench/")
            assert f"optbench/{inside}" in names
    assert "hydra_plugins/optbench_list_sweeper/__init__.py" in names
    assert "hydra_plugins/optbench_race_sweeper/__init__.py" in names


def test_nothing_but_the_product_is_inside(wheel: Path) -> None:
    roots = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    others = {name for name in roots - {"optbench"} if not name.endswith(".dist-info")}
    assert others <= {"hydra_plugins"}


def test_it_is_found_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import optbench.storage.resources as p; print(p.resource_root())"
    done = run(installed, "-c", code, place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("site-packages/optbench")


@pytest.mark.parametrize(
    "arguments",
    [["sweep=demo"], ["-m", "optimizer=adamw,lion", "network.dim=16,32", "validate=default"]],
)
def test_it_plans_from_an_empty_folder(
    installed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    done = run(installed, "-m", "optbench", "plan", *arguments, place=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to do" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_its_help_lists_the_sweeps(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-m", "optbench", "train", "--help", place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
