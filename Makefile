# Every target makes its own environment in .venv, from nothing, and refreshes it only when
# pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: test test-slow demo lint bench docs

# Shapes are checked through an import hook that torch.compile cannot trace, hence two passes.
# Files are dealt out whole, so that what a file trains for its tests is trained once.
WORKERS := --numprocesses=auto --maxprocesses=4 --dist=loadfile
test: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) --jaxtyping-packages=memtx,beartype.beartype -m shapes
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# Scripts that measure, and long runs of several processes: CI runs these as well.
test-slow: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m slow

demo: $(STAMP)
	$(BIN)/python examples/train_qwen_adapter.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in site/: any warning fails, and so does a page that loads something from
# another host. What builds it is installed here only.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m tests.docs.site site

# Measures what this machine can, writes benchmarks/results and docs/performance.md. Not a test.
bench: $(STAMP)
	PYTHONPATH=src:. $(BIN)/python -m benchmarks

# torch goes first, on a line of its own, so that no other package decides its version.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[lora,quantize,test,lint]'
	touch $@

.venv/.docs: $(STAMP)
	$(PIP) -e '.[docs]'
	touch $@
