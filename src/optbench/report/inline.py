"""What a page carries inside: scripts and styles, the policy that lets only them run, and data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

_STATIC = Path(__file__).parent / "static"
_BESIDE = ("'self'", "file:")  # data.js and the images beside a page


def static_text(*names: str) -> str:
    """Return files of `static/`, one after the other."""
    return "".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


def content_policy(scripts: Sequence[str], *, is_alone: bool = False) -> str:
    """Return a Content-Security-Policy: what runs are our scripts, and nothing leaves the page.

    A second line behind the escaping: text of others that got through as HTML would still not run,
    load or send anything.

    Args:
        scripts: The scripts inside of the page, exactly as they stand there.
        is_alone: Whether the page has everything inside and needs nothing that lies beside it.
    """
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    script_places, image_places = ((), ()) if is_alone else (_BESIDE[:1], _BESIDE)
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src", *script_places, *hashes)),
            "style-src 'unsafe-inline'",
            " ".join(("img-src", *image_places, "data:", "blob:")),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def json_text(value: Any) -> Markup:
    """Return JSON that may stand inside of a page's script element: nothing in it ends one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
