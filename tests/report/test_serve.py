"""Serving a report: what is given out, to whom, and everything that is not."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.report import build_report
from optbench.report.serve import ReportServer, site_of
from tests.builders.fabricated_sweep import Shape, make_sweep
from tests.builders.viewer_page import Viewer, chromium, needs_chromium

TOKEN = "secret-of-the-test"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("runs") / "my sweep"
    for name, content in {
        "report/index.html": "the page",
        "report/data.js": "data",
        "report/goal/a.webp": "goal",
        "run-1/images/epoch-0001/a b-64x96-s1.png": "image",
        "run-1/thumbs/epoch-0001/a.webp": "thumb",
        "run-1/lora/run-1.safetensors": "weights",
        "run-1/config.yaml": "cache_dir: /home/somebody",
        "run-1/status.json": "{}",
        "run-1/.hidden/images/x.png": "hidden",
        "multirun.yaml": "private",
    }.items():
        path = sweep / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (sweep.parent / "outside.png").write_text("private")
    (sweep / "run-1" / "images" / "link.png").symlink_to(sweep.parent / "outside.png")
    (sweep / "report" / "linked").symlink_to(sweep.parent)
    return sweep


@pytest.fixture(scope="module")
def server(sweep: Path) -> Iterator[ReportServer]:
    site = site_of([sweep])
    object.__setattr__(site, "token", TOKEN)
    with ReportServer(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ReportServer, path: str, *, host: str | None = None, method: str = "GET"
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {} if host is None else {"Host": host}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("my%20sweep/report/index.html", b"the page"),
        ("my%20sweep/report/data.js?123", b"data"),
        ("my%20sweep/report/goal/a.webp", b"goal"),
        ("my%20sweep/run-1/images/epoch-0001/a%20b-64x96-s1.png", b"image"),
        ("my%20sweep/run-1/thumbs/epoch-0001/a.webp", b"thumb"),
    ],
)
def test_the_page_and_its_images_are_given_out(
    server: ReportServer, path: str, content: bytes
) -> None:
    assert ask(server, f"/{TOKEN}/{path}") == (200, content)
    assert ask(server, f"/{TOKEN}/{path}", method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        f"/{TOKEN}",
        f"/{TOKEN}/my%20sweep/",
        f"/{TOKEN}/my%20sweep/report/",
        f"/{TOKEN}/my%20sweep/report",
        "/another-token/my%20sweep/report/index.html",
        "/my%20sweep/report/index.html",
        f"/{TOKEN}/other/report/index.html",
        f"/{TOKEN}/my%20sweep/run-1/lora/run-1.safetensors",
        f"/{TOKEN}/my%20sweep/run-1/config.yaml",
        f"/{TOKEN}/my%20sweep/run-1/status.json",
        f"/{TOKEN}/my%20sweep/multirun.yaml",
        f"/{TOKEN}/my%20sweep/run-1/.hidden/images/x.png",
        f"/{TOKEN}/my%20sweep/run-1/images/link.png",
        f"/{TOKEN}/my%20sweep/report/linked/outside.png",
        f"/{TOKEN}/my%20sweep/report/../../outside.png",
        f"/{TOKEN}/my%20sweep/report/%2e%2e/%2e%2e/outside.png",
        f"/{TOKEN}/my%20sweep/report/..%2f..%2foutside.png",
        f"/{TOKEN}/my%20sweep/report/%2e%2e%2f%2e%2e%2foutside.png",
        f"/{TOKEN}/my%20sweep/report/%00.png",
        f"/{TOKEN}/my%20sweep/report/missing.png",
        f"/{TOKEN}/my%20sweep//etc/report/passwd.png",
    ],
)
def test_nothing_else_is(server: ReportServer, path: str) -> None:
    status, content = ask(server, path)
    assert status == 404
    assert b"private" not in content


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "localhost.evil.example", ""]
)
def test_a_page_of_a_stranger_that_names_this_machine_is_refused(
    server: ReportServer, host: str
) -> None:
    status, _ = ask(server, f"/{TOKEN}/my%20sweep/report/index.html", host=host)
    assert status == 403


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:1"])
def test_the_other_end_of_an_ssh_tunnel_may_have_any_port(server: ReportServer, host: str) -> None:
    assert ask(server, f"/{TOKEN}/my%20sweep/report/index.html", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(server: ReportServer, method: str) -> None:
    assert ask(server, f"/{TOKEN}/my%20sweep/report/index.html", method=method)[0] == 501


def test_it_listens_on_the_loopback_alone(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert all(url.startswith("http://localhost:") and TOKEN in url for url in server.urls())


def test_a_secret_is_new_each_time(sweep: Path) -> None:
    assert len({site_of([sweep]).token for _ in range(4)}) == 4
    assert len(site_of([sweep]).token) >= 20


def test_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / place / "demo" for place in ("a", "b")]
    assert list(site_of(folders).sweeps) == ["demo", "demo-2"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@needs_chromium
def test_a_served_report_works_as_one_opened_by_double_click(browser: Any, tmp_path: Path) -> None:
    make_sweep(tmp_path / "demo", Shape())
    build_report(tmp_path / "demo", is_live=True)
    with ReportServer(site_of([tmp_path / "demo"]), 0) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        viewer = Viewer(browser.new_page())
        viewer.page.goto(served.urls()[0])
        viewer.page.locator(".live").wait_for()
        viewer.page.locator(".vg-cell img").first.scroll_into_view_if_needed()
        viewer.page.wait_for_timeout(500)
        shown = viewer.page.locator(".vg-cell img").first.evaluate("(image) => image.naturalWidth")
        served.shutdown()
        thread.join()
    assert shown > 0
    assert viewer.faults == []
