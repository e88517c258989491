"""The page itself: template, style, script and data in one file."""

import html
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from memtx.checks import unwritable

# JSON knows these escapes, and without the characters no text can end the script it stands in.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render(inspection: Mapping[str, Any]) -> str:
    """Give the page as a string: it loads nothing, and shows texts as text.

    Args:
        inspection: what `inspect_texts` gave.
    """
    parts = {
        "title": html.escape(str(inspection["title"])),
        "style": _resource("style.css"),
        "script": _resource("script.js"),
        "data": _escaped(inspection),
    }
    # In one pass: what was put in is not looked at again.
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], _resource("page.html"))


def write_report(inspection: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page as one file that needs no network.

    Args:
        inspection: what `inspect_texts` gave.
        path: the file; one that is there is replaced.

    Raises:
        OSError: if the file cannot be written.
    """
    target = Path(path)
    text = render(inspection)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(owner="write_report", path=path, error=error) from error


def _escaped(inspection: Mapping[str, Any]) -> str:
    text = json.dumps(inspection, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda found: _ESCAPES[found[0]], text)


def _resource(name: str) -> str:
    return files("memtx.usage.report").joinpath(name).read_text(encoding="utf-8").strip()
