# Every target does its own set-up; a second run skips what is done.
PYTHON ?= python3
CONFIG ?= jobs/configs/laptop.yaml
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test lint types bench bench-stream bench-cold-start bench-recovery clean

help:
	@echo "make train    prepare the embedded corpus and train the laptop model on it"
	@echo "make test     lint, type-check and test"
	@echo "make bench    compare the platform's speed with a bare PyTorch loop"
	@echo "make bench-stream    compare the stream's speed with bare readers"
	@echo "make bench-cold-start    measure what the stream adds to the time to the first step"
	@echo "make bench-recovery    measure how long the death of a node stops a run"
	@echo "make clean    remove .venv (data/ and runs/ stay)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

train: $(INSTALLED)
	$(BIN)/panthalassa prepare $(CONFIG)
	$(BIN)/panthalassa train $(CONFIG)

test: lint types
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/step.py

bench-stream: $(INSTALLED)
	$(BIN)/python tests/benchmarks/stream.py

bench-cold-start: $(INSTALLED)
	$(BIN)/python tests/benchmarks/cold_start.py

bench-recovery: $(INSTALLED)
	$(BIN)/python tests/benchmarks/recovery.py

clean:
	rm -rf .venv
