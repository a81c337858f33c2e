"""Serve reports over HTTP on this machine's loopback, for a browser at the other end of ssh.

Only the files that a page shows are given out, below an address with a secret in it; folders are
not listed. Requests that name another host are refused: a page of a stranger could otherwise read
the report through a name that it makes point to this machine.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from optbench.report import REPORT_NAME
from optbench.storage.disk import open_regular

PORT = 8765  # the first one that is tried
_NUM_PORTS = 20
_HOST = "127.0.0.1"
_HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")
_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/octet-stream",
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
}
_IMAGE_FOLDERS = ("images", "thumbs", "sheets")
_IMAGE_TYPES = (".png", ".webp", ".jpg")
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Site:
    """What is served: the reports of some sweeps, each under its folder's name."""

    sweeps: Mapping[str, Path]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def file_at(self, address: str) -> Path | None:
        """Return the file that an address's path names; None where nothing is given out."""
        parts = [unquote(part) for part in urlsplit(address).path.split("/") if part]
        if len(parts) < 4 or not secrets.compare_digest(parts[0].encode(), self.token.encode()):
            return None
        sweep, parts = parts[1], parts[2:]
        if sweep not in self.sweeps or not all(map(_is_plain, parts)):
            return None
        root = self.sweeps[sweep]
        path = root.joinpath(*parts)
        is_report = parts[0] == "report" and path.suffix in _TYPES
        is_image = len(parts) >= 3 and parts[1] in _IMAGE_FOLDERS and path.suffix in _IMAGE_TYPES
        if not (is_report or is_image):
            return None
        # A folder of somebody else's may hold links that lead anywhere.
        places = [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
        if any(place.is_symlink() for place in places):
            return None
        return path if path.is_file() else None


class ReportServer(ThreadingHTTPServer):
    """Serves a site until it is shut down."""

    daemon_threads = True

    def __init__(self, site: Site, port: int | None = None) -> None:
        """Listen on a port of the loopback, the first free one from `PORT` on unless it is given.

        Raises:
            OSError: If no port is free.
        """
        self.site = site
        ports = [port] if port is not None else [*range(PORT, PORT + _NUM_PORTS), 0]
        for tried in ports:
            try:
                super().__init__((_HOST, tried), _Handler)
                return
            except OSError:
                if tried == ports[-1]:
                    raise

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def urls(self) -> list[str]:
        """Return the address of every report."""
        start = f"http://localhost:{self.port}/{self.site.token}"
        return [f"{start}/{name}/report/{REPORT_NAME}" for name in self.site.sweeps]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version = "optbench"
    sys_version = ""

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """Send a file, or why not."""
        self._answer(has_body=True)

    def do_HEAD(self) -> None:  # noqa: N802 - http.server's name
        """Send a file's headers."""
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        host = self.headers.get("Host", "")
        if re.sub(r":\d+$", "", host) not in _HOST_NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "this host is not served")
            return
        if self.path == "/favicon.ico":  # every browser asks for one
            self.send_response(HTTPStatus.NO_CONTENT)
            self.end_headers()
            return
        path = self.server.site.file_at(self.path)
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no file of a report")
            return
        try:
            file = open_regular(path, is_ours=True)
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND, "no file of a report")
            return
        with file, contextlib.suppress(ConnectionError):
            size = path.stat().st_size
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES[path.suffix])
            self.send_header("Content-Length", str(size))
            self.end_headers()
            left = size if has_body else 0
            while left > 0 and (piece := file.read(min(left, _CHUNK_BYTES))):
                self.wfile.write(piece)
                left -= len(piece)

    def end_headers(self) -> None:
        """Add what every answer says."""
        for name, value in (
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),  # the address has the secret in it
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Frame-Options", "DENY"),
            ("Cache-Control", "no-cache" if self.path.endswith(_IMAGE_TYPES) else "no-store"),
        ):
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing: a page asks for hundreds of files."""


def _is_plain(part: str) -> bool:
    return part not in (".", "..") and not part.startswith(".") and not set(part) & set("/\\\0")


def site_of(sweep_dirs: Sequence[Path]) -> Site:
    """Return a site of these sweeps; of folders with one name the later have a number."""
    sweeps: dict[str, Path] = {}
    for folder in sweep_dirs:
        name, number = folder.resolve().name, 2
        while name in sweeps:
            name = f"{folder.resolve().name}-{number}"
            number += 1
        sweeps[name] = folder.resolve()
    return Site(sweeps)
