"""Replace typed secrets by `***` before a command or a setting is stored, shown or sent anywhere.

A key says that its value is a secret (HF_TOKEN, WANDB_API_KEY, password), or the value's own form
does: tokens of the hub, of GitHub and the like, and a name and password inside a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
# The last word of a key: `hf_token` and `apiKey` are secrets, `keep_tokens` is none.
_SECRET_WORDS = frozenset(
    (
        *("token", "key", "apikey", "secret", "password", "passwd", "passphrase", "pwd", "pat"),
        *("credential", "credentials", "auth", "authorization", "bearer", "cookie"),
    )
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_ENVIRONMENT = re.compile(r"^hydra\.job\.env_set(\.|$)")
_PAIR = re.compile(r"""([A-Za-z_][\w.-]*)["']?\s*[:=]\s*("[^"]*"|'[^']*'|[^\s,{}\[\]"']+)""")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{16,}|wandb_v1_\w{16,}|AKIA[0-9A-Z]{12,}|xox[abprs]-[\w-]{10,})"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def is_secret(key: str) -> bool:
    """Return whether a dotted key names a secret; every variable that Hydra sets counts as one."""
    words = _WORD.findall(key.rpartition(".")[2])
    return _ENVIRONMENT.match(key) is not None or (
        bool(words) and words[-1].lower() in _SECRET_WORDS
    )


def hide_in_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command's words with every secret in them as `***`."""
    return [_hide_in_argument(argument) for argument in arguments]


def hide_in_settings(value: Any, key: str = "") -> Any:
    """Return nested settings with every secret in them as `***`.

    Args:
        value: A mapping, a list or a single value.
        key: The dotted key it has.
    """
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        return {name: hide_in_settings(item, f"{prefix}{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_in_settings(item, key) for item in value]
    if value is not None and value != "" and not isinstance(value, bool) and is_secret(key):
        return HIDDEN
    return _hide_in_text(value) if isinstance(value, str) else value


def _hide_in_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    bare = key.lstrip("+~-")
    if not equals or value in ("", "null"):
        return _hide_in_text(argument)
    if is_secret(bare):
        return f"{key}={HIDDEN}"

    def hide_pair(pair: re.Match[str]) -> str:
        return pair[0].replace(pair[2], HIDDEN) if is_secret(pair[1]) else pair[0]

    # A whole group at once: tracker.args={wandb:{api_key:...}}
    is_group = value.lstrip().startswith(("{", "["))
    return f"{key}={_hide_in_text(_PAIR.sub(hide_pair, value) if is_group else value)}"


def _hide_in_text(text: str) -> str:
    return _URL_LOGIN.sub(HIDDEN, _FORMS.sub(HIDDEN, text))
