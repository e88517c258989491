"""Checks a built documentation site: `python -m tests.docs.site site`.

It must load nothing from another host, and describe every public name on exactly one API page.
"""

import importlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = [
    "transformer",
    "memory",
    "tensor",
    "adapters",
    "models",
    "spec",
    "data",
    "train",
    "generate",
    "evaluate",
    "usage",
]
# Modules that are public and have no package of their own, with the names that they offer.
MODULES = {
    "memtx.blocks": ["MemoryBlock", "Residual"],
    "memtx.huggingface": ["MemtxConfig", "MemtxForCausalLM"],
    "memtx.initialize": ["FromRows", "Normal", "Zeros"],
    "memtx.losses": ["ChapterVarianceLoss", "LoadBalanceLoss", "RouterZLoss"],
}
# Elements that a browser loads something for, and the attribute that says from where.
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
# A link that only says something of the page.
SAYS = {"canonical", "next", "prev", "alternate"}
OUTSIDE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
STYLE_LOADS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\s\"')]+)", re.IGNORECASE)


class Page(HTMLParser):
    """What a page loads from another host, the ids in it, and whether it asks for mermaid."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.loads += STYLE_LOADS.findall(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        if "mermaid" in given.get("class", "").split():
            self.loads.append("mermaid, by the theme's script")
        address = given.get(LOADS.get(tag, ""), "")
        if OUTSIDE.match(address) and not SAYS & set(given.get("rel", "").split()):
            self.loads.append(address)


def public_names() -> list[str]:
    """Every public name with what offers it, such as `memtx.train.Trainer`."""
    found = [f"{module}.{name}" for module, names in MODULES.items() for name in names]
    for package in PACKAGES:
        module = importlib.import_module(f"memtx.{package}")
        found += [f"memtx.{package}.{name}" for name in module.__all__]
    return found


def loaded_from_outside(site: Path) -> list[str]:
    """What pages and styles of a site load from another host."""
    found = []
    for path in sorted(site.rglob("*.html")):
        page = Page(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: loads {address}" for address in page.loads]
    for path in sorted(site.rglob("*.css")):
        addresses = STYLE_LOADS.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: loads {address}" for address in addresses]
    return found


def misplaced_names(site: Path, names: list[str]) -> list[str]:
    """The names that are not described on exactly one page below api/.

    A function that has the name of its module stands under the module's name and its own.
    """
    places: dict[str, list[str]] = {}
    for path in sorted((site / "api").glob("*.html")):
        for each in set(Page(path.read_text(encoding="utf-8")).ids):
            places.setdefault(each, []).append(path.name)
    found = []
    for name in names:
        twice = f"{name}.{name.rpartition('.')[2]}"
        pages = sorted({*places.get(name, []), *places.get(twice, [])})
        if len(pages) != 1:
            found.append(f"{name}: must be described on one API page, got {pages}")
    return found


def main() -> int:
    """Check the site whose folder is named, and say what is wrong with it."""
    site = Path(sys.argv[1])
    found = loaded_from_outside(site) + misplaced_names(site, public_names())
    print("\n".join(found) or f"{site}: {len(list(site.rglob('*.html')))} pages, as they must be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
