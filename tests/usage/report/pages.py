"""Pages of tiny models, and what a browser makes of them."""

import html
import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from memtx import Site, TokenRouting
from memtx.data import Fact
from memtx.usage.report import inspect_texts
from tests import routing
from tests.adapters.bases import llama, working_adapter
from tests.usage.words import tokenizer

# What must not become markup, nor run, nor end the script that the data stands in.
HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="boom()"> w2 & @data@'
TEXTS = {
    "one": " ".join(f"w{2 + number % 60}" for number in range(40)),
    "two\n</title>": f"w2 \u2028 w3\n\nw4\t{HOSTILE} \U0001f642 \u6f22",
}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def dense():
    return working_adapter(llama(), Site.AFTER_MLP), 2


def routed():
    return routing.transformer(TokenRouting(), losses=[]), 3


def inspection(model, size, texts):
    return inspect_texts(
        model,
        tokenizer=tokenizer(),
        texts=texts,
        title=f"A memory {HOSTILE}",
        tokens_per_chapter=size,
        max_length=500,
        fact=Fact(prompt="w2 w3 w4", answer="w5 <b>"),
        bank=0,
    )


class Page(HTMLParser):
    """The parts of a page: tags with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
            self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1][1] += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def browser():
    """Chromium by one of its names; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    return found


def chromium(folder, page, options):
    """Opens a page with an empty profile and no network, and gives what it wrote."""
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [browser(), *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.fail(done.stderr, pytrace=False)
    return done.stdout


def probed(folder, probes, options):
    """Runs function bodies in pages, after these have drawn themselves, and gives what they return.

    Probes are (page, body, width): each page stands in a frame of its own of that width, so that
    one start of the browser is enough.
    """
    frames = []
    for page, body, width in probes:
        run = (
            f"<script>const found = (() => {{ {body} }})();"
            "document.body.dataset.probe = JSON.stringify(found);</script></body>"
        )
        text = page.read_text(encoding="utf-8").replace("</body>", run)
        style = f"width: {width}px; height: 844px; border: 0"
        frames.append(f'<iframe style="{style}" srcdoc="{html.escape(text)}"></iframe>')
    gather = (
        "<script>addEventListener('load', () => {"
        "const frames = [...document.querySelectorAll('iframe')];"
        "const found = frames.map((each) => each.contentDocument.body.dataset.probe ?? 'null');"
        "document.body.dataset.probe = JSON.stringify(found); });</script>"
    )
    host = folder / "host.html"
    host.write_text(f"<!doctype html><body>{''.join(frames)}{gather}</body>", encoding="utf-8")
    bodies = Page(chromium(folder, host, [*options, "--dump-dom"])).attributes("body")
    return [json.loads(each) for each in json.loads(bodies[0]["data-probe"])]


def opened_in(folder, page):
    """Gives the milliseconds from opening a page by itself to its being drawn."""
    root = Page(chromium(folder, page, ["--dump-dom"])).attributes("html")[0]
    return float(root["data-ready"])
