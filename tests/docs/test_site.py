"""The check of the built site, on sample sites, and what griffe reads of a docstring.

The site itself is built and checked by `make docs`.
"""

import importlib.util
import re

import pytest

import memtx
from tests.docs import site
from tests.rules.source import ROOT

API = ROOT / "docs" / "api"
REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)
LINKED = re.compile(r"\[`(\w+)`\]\[")
CLEAN = (
    '<link rel="canonical" href="https://example.org/a"><script src="a.js"></script><h2 id="m.A">'
)


def write(folder, pages):
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_site_that_stands_alone(tmp_path):
    folder = write(tmp_path, {"index.html": CLEAN, "a.css": "a { background: url(b.png) }"})
    assert site.loaded_from_outside(folder) == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/a.css">',
        '<img src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<pre class="mermaid"><code>graph</code></pre>',
    ],
)
def test_what_comes_from_elsewhere_is_found(tmp_path, text):
    (found,) = site.loaded_from_outside(write(tmp_path, {"index.html": CLEAN + text}))
    assert found.startswith("index.html: loads ")


def test_a_style_that_loads_a_font_is_found(tmp_path):
    folder = write(tmp_path, {"a.css": "@font-face { src: url('https://example.org/a.woff') }"})
    assert site.loaded_from_outside(folder) == ["a.css: loads https://example.org/a.woff"]


def test_names_stand_on_one_page(tmp_path):
    pages = {
        "api/a.html": '<h2 id="m.A"></h2><h2 id="m.f.f"></h2>',
        "api/b.html": '<h2 id="m.B"></h2>',
        "api/c.html": '<h2 id="m.B"></h2>',
    }
    found = site.misplaced_names(write(tmp_path, pages), ["m.A", "m.f", "m.B", "m.C"])
    assert found == [
        "m.B: must be described on one API page, got ['b.html', 'c.html']",
        "m.C: must be described on one API page, got []",
    ]


def test_each_package_has_one_page_and_each_top_name_a_link():
    shown = [
        name
        for path in sorted(API.glob("*.md"))
        for name in REFERENCE.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(shown) == len(set(shown))
    assert {f"memtx.{package}" for package in site.PACKAGES} | set(site.MODULES) <= set(shown)
    linked = LINKED.findall((API / "index.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted([*memtx.__all__, *site.MODULES["memtx.huggingface"]])


def test_every_package_with_public_names_is_listed():
    found = {
        path.parent.name
        for path in (ROOT / "src" / "memtx").glob("*/__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert found - {"cli"} == set(site.PACKAGES)


def test_docstrings_in_words_that_griffe_knows():
    pytest.importorskip("griffe", reason="make docs installs griffe")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (
        "Does it.\n\nArgs:\n    None: it takes no arguments.\n\nShapes:\n    `[a]` to\n"
        "    `[b]`.\n\nSource: a book.\n\nExample:\n    >>> 1\n    1"
    )
    assert module.in_known_words(text) == (
        "Does it.\n\n**Shapes:** `[a]` to `[b]`.\n\n**Source:** a book.\n\n"
        "Examples:\n    >>> 1\n    1"
    )


def test_each_page_is_named_once():
    """In the site's menu and in the list of README.md; on the front page, no page twice."""
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    menu = re.findall(r" ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(each for each in menu if (ROOT / "docs" / each).is_file()) == pages
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Documentation\n")[1]
    listed = re.findall(r"^- \[docs/([\w-]+\.md)\]\(docs/([\w-]+\.md)\)", readme, re.M)
    assert all(text == target for text, target in listed)
    assert sorted(text for text, _ in listed) == [each for each in pages if each != "index.md"]
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([\w-]+\.md)\)", front)
    assert len(set(linked)) == len(linked)
