# make demo   environment, install, the whole job on the embedded data, a report
# make test   environment, install, the tests; those of diffusers and ONNX are skipped (CI's job "extras" runs them)
# make lint   ruff and mypy
# make docs   the site, in build/site, and what its search finds; .venv/bin/pytest -m docs runs what the pages say
# make notebooks   run docs/notebooks in Jupyter, at full size
#
# The constraints file pins the CPU build of torch. With a GPU, choose your own build:
#     make demo CONSTRAINTS=
PYTHON      ?= python3
CONSTRAINTS ?= constraints-cpu.txt
VENV        ?= .venv
BIN         := $(VENV)/bin
INSTALLED   := $(VENV)/.installed
# Processes that share the tests; each computes on one thread.
WORKERS     ?= 2
# Tests marked gpu that are small enough for the pretended card (tests/card), which computes on the CPU.
CARD_TESTS  := tests/card tests/core tests/metrics tests/test_doctor.py tests/training/test_optim.py tests/training/test_precision.py
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint docs notebooks format install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(CONSTRAINTS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "consistune needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) torch
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/consistune demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest -p tests.card.plugin -m gpu $(CARD_TESTS)
	$(BIN)/python benchmarks/card.py --rehearse

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m pytest tests/test_site.py

notebooks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	$(BIN)/jupyter execute --timeout 1800 docs/notebooks/*.ipynb

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
