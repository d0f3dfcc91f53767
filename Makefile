# Thin over plain commands, for people who like make; every line below also works typed by hand.
#   make demo                        a study on real data that comes with scikit-learn
#   make test                        what CI runs: lint and tests
#   make replicate                   the claims of the papers tested again (long); records, figures and REPLICATIONS.md
#   make bench                       the benchmarks of BENCHMARKS.md (long; wants an idle machine)
#   make demo TORCH_INDEX=<address>  torch from another index, such as the one pytorch.org names for its CPU build
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin

.PHONY: help demo install test lint pytest format replicate bench docs clean

help:
	@sed -n 's/^#   //p' Makefile

# -- installing: skipped while the stamp is newer than what decides it ------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/pip install -q -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install -q -c constraints.txt -e '.[test,ray,lightning,text,trl,federated,he]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/pip install -q -c constraints.txt -e '.[docs,lightning,text,federated,he]'
	@touch $@

install: $(VENV)/.core

# -- using ------------------------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.core
	$(BIN)/counterpoise study digits8 --learners linear,trees --remedies prior,weights,over,under,smote,balanced-forest --out runs/demo --resume

# -- checking ---------------------------------------------------------------------------------------------------------------------------

test: lint pytest

pytest: $(VENV)/.test
	$(BIN)/pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# -- evidence: its results are committed ------------------------------------------------------------------------------------------------

replicate: $(VENV)/.test
	$(BIN)/counterpoise replicate --all --out runs/replications
	$(BIN)/python docs/publish_replications.py runs/replications

bench: $(VENV)/.test
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || echo "$$file: see above"; done

docs: $(VENV)/.docs
	$(BIN)/python docs/make_api.py

clean:
	rm -rf docs/api dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
