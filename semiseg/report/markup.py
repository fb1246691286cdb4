"""Carry text through Markdown, HTML and the terminal; a note of a table is Markdown with ** and ` only."""

import html
import re
from collections.abc import Callable

# What begins a mark of GitHub's Markdown within a line: an underscore between letters and a bracket that ends
# no link do not.
_SPECIAL = re.compile(r"[\\`*<>|~$&#]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
_MARK = re.compile(r"\\(?P<escaped>[^\w\s]|_)|\*\*(?P<strong>.+?)\*\*|`(?P<code>[^`]+)`")


def one_line(text: str) -> str:
    """Replace every run of white space by a blank."""
    return " ".join(text.split())


def escape(text: str) -> str:
    """Return Markdown that shows ``text`` as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", one_line(text))


def to_html(note: str) -> str:
    """Convert a note to HTML."""
    return _converted(note, html.escape, {"strong": _strong, "code": _code, "escaped": html.escape})


def to_plain(note: str) -> str:
    """Drop a note's marks."""
    return _converted(note, str, {"strong": to_plain, "code": str, "escaped": str})


def _strong(text: str) -> str:
    return f"<strong>{to_html(text)}</strong>"


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _converted(note: str, plain: Callable[[str], str], marks: dict[str, Callable[[str], str]]) -> str:
    parts, end = [], 0
    for found in _MARK.finditer(note):
        assert found.lastgroup is not None
        parts += [plain(note[end : found.start()]), marks[found.lastgroup](found[found.lastgroup])]
        end = found.end()
    return "".join([*parts, plain(note[end:])])
