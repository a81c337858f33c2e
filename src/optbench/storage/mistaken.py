"""Recognize what people have on their disk instead of a file: pointers, web pages, nothing."""

from __future__ import annotations

HEAD_BYTES = 512  # as much of a file as is looked at

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def mistaken_for(head: bytes) -> str | None:
    """Return what a file's beginning shows it to be instead of what was wanted, and what to do.

    None where it may be anything. Text files may begin with a byte order mark.
    """
    start = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_LFS):
        return "a Git LFS pointer in place of the file: run `git lfs pull` where it came from"
    if start.startswith(_PAGES):
        return "a saved web page in place of the file: download the file that the page offers"
    if not head:
        return "an empty file: copy or download it again"
    return None
