"""Write a sweep's report as one HTML file with its images inside, to be sent to people.

Whatever the page loads from beside it goes inside; what has no place in a file for others stays
out: weights, tables, links to files, places on this machine and, unless asked for, training images.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from optbench.errors import DamagedFileError
from optbench.report import build_report
from optbench.report.charts.chart import FOLDER, LIBRARY
from optbench.report.inline import json_text, static_text
from optbench.storage.disk import read_text
from optbench.storage.files import write_atomic
from optbench.storage.images import opened_rendered
from optbench.storage.nested import flatten
from optbench.storage.rundir import RunDir, read_config

_MAX_BYTES = 9 * 2**20  # of all images together; base64 adds a third
_SIDES_PX = (1024, 768, 640, 512, 384, 256, 192, 128)  # tried in turn
_QUALITY = 82
_METHOD = 4
_NUM_TRIED = 12  # images that the size of all is estimated from
_BASE = "epoch-0000"
_OF_TRAINING = ("goal", "nearest")  # folders of the report with training images
_DATA = "window.optbenchReport="
_CHART_DATA = "optbenchCharts.add("
# Two parts or more, so that a lone slash of a sentence is none.
_PATH = re.compile(r"(?<![\w.~/:<\\…])(?:~|(?=/))(?:/[^\s/'\"<>,;:|()\[\]{}&]+){2,}/?")
_STYLE = """
.sheet-list, .lora, h4:has(+ .lora), .fs-goal[hidden] { display: none }
a:not([href]) { color: inherit; text-decoration: none }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A written file."""

    path: Path
    num_images: int
    side_px: int  # the longer side of its largest images
    left_out: str  # what is not in it, in words; "" for nothing


def share_report(sweep_dir: Path, target: Path, *, with_training_images: bool = False) -> Shared:
    """Write a sweep's report as one file to `target`.

    Raises:
        DatasetError: If there is no such folder.
    """
    page = build_report(sweep_dir)
    report_dir = page.parent
    places = _Places.of(sweep_dir)
    images, side_px, left_out = _embedded(sweep_dir, with_training_images=with_training_images)
    rewriter = _Rewriter(report_dir, places, images, with_training_images=with_training_images)
    rewriter.feed(read_text(page))
    rewriter.close()
    write_atomic(target, rewriter.text())
    return Shared(path=target, num_images=len(images.files), side_px=side_px, left_out=left_out)


@dataclass(frozen=True, slots=True)
class _Images:
    """Images by the key that share.js works out of an address, each content once."""

    files: Mapping[str, str]  # key -> hash
    data: Mapping[str, str]  # hash -> data URI

    def at(self, address: str) -> str | None:
        text = re.sub(r"^(?:\.{1,2}/)+", "", unquote(address).split("?")[0])
        key = re.sub(r"\.\w+$", "", text.replace("/thumbs/", "/images/"))
        return self.data.get(self.files.get(key, ""))


def _embedded(sweep_dir: Path, *, with_training_images: bool) -> tuple[_Images, int, str]:
    """Return the images as WebP, as large as fits, and what had to be left out."""
    by_key = {
        f"{path.parents[2].name}/images/{path.parent.name}/{path.stem}": path
        for path in sorted(sweep_dir.glob("*/images/epoch-*/*.png"))
    }
    side_px, left_out = _SIDES_PX[0], ""
    some = list(by_key.values())[:: max(1, len(by_key) // _NUM_TRIED)]
    num_different = len({_identity(path) for path in by_key.values()})
    for side_px in _SIDES_PX:
        sizes = [len(content) for path in some if (content := _webp(path, side_px))]
        if not sizes or sum(sizes) / len(sizes) * num_different <= _MAX_BYTES:
            break
    else:
        last = {path.parents[2]: path.parent.name for path in sorted(by_key.values())}
        kept = {
            key: path
            for key, path in by_key.items()
            if path.parent.name in (_BASE, last[path.parents[2]])
        }
        left_out = f"{len(by_key) - len(kept)} images of the epochs before the last"
        by_key = kept
    if with_training_images:
        for folder in _OF_TRAINING:
            copies = sorted((sweep_dir / "report" / folder).glob("*.webp"))
            by_key |= {f"{folder}/{path.stem}": path for path in copies}
    files: dict[str, str] = {}
    data: dict[str, str] = {}
    known: dict[object, str] = {}
    for key, path in by_key.items():
        identity = _identity(path)
        if identity not in known:
            content = _webp(path, side_px)
            if content is None:
                continue
            digest = hashlib.sha256(content).hexdigest()[:12]
            data[digest] = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
            known[identity] = digest
        files[key] = known[identity]
    return _Images(files, data), side_px, left_out


def _identity(path: Path) -> object:
    """Return what files of one content under several names share."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _webp(path: Path, side_px: int) -> bytes | None:
    """Return an image as WebP without anything else that its file says; None if it is damaged."""
    try:
        with opened_rendered(path) as image:
            pixels = image.convert("RGB")
            pixels.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            pixels.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
            return buffer.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


class _Places:
    """Hides where things lie on this machine: `/models/my/sd15` is shown as `…/sd15`."""

    def __init__(self, known: Sequence[str]) -> None:
        # The longest first, for one may begin another. With blanks in them, no pattern finds them.
        self._known = sorted({text for text in known if len(text) > 1}, key=len, reverse=True)

    @classmethod
    def of(cls, sweep_dir: Path) -> _Places:
        known = [str(Path.home()), str(Path.cwd()), *map(str, sweep_dir.resolve().parents)]
        for config_path in sweep_dir.glob("*/config.yaml"):
            try:
                known += _absolute(read_config(RunDir(config_path.parent)))
            except DamagedFileError:
                continue
        return cls([place for place in known if place != "/"])

    def hidden(self, text: str) -> str:
        """Return a text without them."""
        if "/" not in text or text.startswith("data:"):
            return text
        for place in self._known:
            if place in text:
                text = re.sub(rf"(?<![\w.]){re.escape(place)}(?![\w.-])", _last(place), text)
        return _PATH.sub(lambda match: _last(match[0]), text)


def _absolute(tree: Mapping[str, Any]) -> Iterator[str]:
    for value in flatten(tree).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item.startswith(("/", "~")):
                yield item.rstrip("/")


def _last(place: str) -> str:
    name = place.rstrip("/").rpartition("/")[2]
    # The program in a command is typed by its name.
    return name if name in ("optbench", "python", "python3") else f"…/{name}"


class _Rewriter(HTMLParser):
    """Copies a page, with everything that it loads put inside or left out."""

    def __init__(
        self, folder: Path, places: _Places, images: _Images, *, with_training_images: bool
    ) -> None:
        super().__init__(convert_charrefs=False)
        self._folder, self._places, self._images = folder, places, images
        self._with_training_images = with_training_images
        self._parts: list[str] = []
        self._scripts: list[str] = []
        self._policy: tuple[int, str] | None = None  # where it stands, and what it was
        self._raw = ""  # the element whose content is no HTML

    def text(self) -> str:
        """Return the page, with a policy that lets just its own scripts run."""
        assert self._policy is not None
        place, before = self._policy
        rules = dict(rule.strip().partition(" ")[::2] for rule in before.split(";"))
        beside = ("'self'", "file:")
        digests = [hashlib.sha256(script.encode()).digest() for script in self._scripts]
        hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        for name, words in rules.items():
            kept = [word for word in words.split() if word not in beside and "sha256" not in word]
            rules[name] = " ".join([*kept, *(hashes if name == "script-src" else ())])
        policy = "; ".join(f"{name} {words}" for name, words in rules.items())
        self._parts[place] = (
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        )
        return "".join(self._parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self._policy = len(self._parts), given["content"]
            self._parts.append("")
            return
        if tag == "meta" and given.get("name") == "optbench-build":
            return  # there is no newer one to look for
        if tag == "link" and given.get("rel") == "stylesheet":
            self._parts.append(f"<style>{self._beside(given['href'])}</style>")
            return
        if tag == "script":
            self._raw = "json" if "json" in given.get("type", "") else tag
            kept = [(name, value) for name, value in attrs if name != "src"]
            self._parts.append(self._tag(tag, kept))
            if "src" in given:
                self._add_script(self._beside(given["src"]))
            return
        if tag == "img" and "src" in given and not given["src"].startswith("data:"):
            content = self._images.at(given["src"])
            if content is None:
                return
            attrs = [(name, content if name == "src" else value) for name, value in attrs]
        is_beside = tag == "a" and not re.match(r"#|https?:|$", given.get("href", ""))
        if is_beside and self._images.at(given["href"]) is None:
            attrs = [(name, value) for name, value in attrs if name != "href"]
        if "fs-goal" in given.get("class", "").split() and not self._with_training_images:
            attrs = [*attrs, ("hidden", None)]
        self._raw = tag if tag == "style" else self._raw
        self._parts.append(self._tag(tag, attrs))
        if tag == "body":
            self._parts.append("<script>")
            inside = {
                "files": self._images.files,
                "data": self._images.data,
                "scripts": dict(self._later_scripts()),
            }
            self._add_script(
                f"window.optbenchImages={json_text(inside)};\n{static_text('share.js')}"
            )
            self._parts.append("</script>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._parts and self._parts[-1].endswith(">") and tag not in ("img", "meta", "link"):
            self._parts[-1] = f"{self._parts[-1][:-1]}/>"

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""
        if tag == "body":
            self._add_charts()
        self._parts.append(f"{_STYLE}</style>" if tag == "style" else f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self._add_script(data)
        else:
            self._parts.append(data if self._raw == "style" else self._places.hidden(data))

    def handle_entityref(self, name: str) -> None:
        self._parts.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._parts.append(f"&#{name};")

    def handle_decl(self, decl: str) -> None:
        self._parts.append(f"<!{decl}>")

    def handle_comment(self, data: str) -> None:
        """Leave comments out."""

    def _add_script(self, text: str) -> None:
        if text.startswith(_DATA):
            text = self._data(text)
        if text.strip():
            self._scripts.append(text)
            self._parts.append(text)

    def _add_charts(self) -> None:
        """Put the library and the data of all charts inside, which a page else loads when seen."""
        folder = self._folder / FOLDER
        listed = sorted(path.stem for path in folder.glob("*.js") if path.name not in LIBRARY)
        for name in listed:
            head = f'optbenchCharts.add("{name}",'
            data = json.loads(read_text(folder / f"{name}.js").removeprefix(head).rstrip(");\n"))
            self._parts.append("<script>")
            self._add_script(f"{head}{json_text(self._without_places(data))});\n")
            self._parts.append("</script>")
        for name in LIBRARY if listed else ():
            self._parts.append("<script>")
            self._add_script(self._beside(f"./{FOLDER}/{name}"))
            self._parts.append("</script>")

    def _data(self, text: str) -> str:
        """Return the viewer's data without places on this machine and without training images."""
        value = json.loads(text.removeprefix(_DATA).rstrip().rstrip(";"))
        if not self._with_training_images:
            value["nearest"] = None
        return f"{_DATA}{json_text(self._without_places(value))};\n"

    def _without_places(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._places.hidden(value)
        if isinstance(value, list):
            return [self._without_places(item) for item in value]
        if isinstance(value, dict):
            return {key: self._without_places(item) for key, item in value.items()}
        return value

    def _later_scripts(self) -> Iterator[tuple[str, str]]:
        """Yield the scripts that the page's own load when they are needed, by their address."""
        for path in sorted(self._folder.glob("*/*.js")):
            text = read_text(path)
            if text.startswith(_CHART_DATA):
                text = self._places.hidden(text)
            self._scripts.append(text)
            yield path.relative_to(self._folder).as_posix(), text

    def _beside(self, address: str) -> str:
        path = self._folder / unquote(address.split("?")[0]).removeprefix("./")
        # The end of a script or style inside of one would end the element.
        return re.sub(r"</(?=script|style)", r"<\\/", read_text(path), flags=re.IGNORECASE)

    def _tag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> str:
        words = [
            name if value is None else f'{name}="{html.escape(self._places.hidden(value))}"'
            for name, value in attrs
        ]
        return f"<{' '.join([tag, *words])}>"
