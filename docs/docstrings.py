"""What the API pages make of a docstring: memtx's sections in words that griffe knows.

Griffe reads `Example:` as a box of text, and knows nothing of `Source:`, `Shapes:` and arguments
that there are none of.
"""

import re
from typing import Any

import griffe

NO_ARGUMENTS = re.compile(r"^Args:\n +None: [^\n]*\n*", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
SHAPES = re.compile(r"^Shapes:\n(?P<text>(?: +\S[^\n]*(?:\n|\Z))+)", re.MULTILINE)
SOURCE = re.compile(r"^Source: ", re.MULTILINE)


def in_known_words(text: str) -> str:
    """Rewrite a docstring whose first line is not indented deeper than the rest."""
    text = EXAMPLE.sub("Examples:", NO_ARGUMENTS.sub("", text))
    text = SHAPES.sub(lambda found: "**Shapes:** " + _joined(found["text"]) + "\n", text)
    return SOURCE.sub("**Source:** ", text)


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed, and hides what says nothing of its own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = in_known_words(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Hide a constructor's parameters as attributes: the class tells of them."""
        if attr.parent and attr.parent.is_class and not attr.docstring:
            attr.public = False

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Hide the methods that Python or torch calls, but for `__call__` and the constructor."""
        if func.name.startswith("__") and func.name not in {"__call__", "__init__"}:
            func.public = False
