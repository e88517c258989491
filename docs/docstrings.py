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

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Take out what the class itself tells of: parameters kept as attributes, and hooks."""
        for name, member in list(cls.members.items()):
            silent = member.is_attribute and not member.has_docstring
            if silent or (name.startswith("__") and name not in {"__call__", "__init__"}):
                del cls.members[name]
