# Two commands: `make train` shows the method at work, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
CHECKED := pyproject.toml constraints.txt

.PHONY: train test lint clean

train: $(VENV)/.torch
	$(BIN)/python -c "import spatlib; spatlib.train(backend='torch')"

test: lint
	$(BIN)/pytest --numprocesses 2

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp per set of packages: a second run starts at once, a changed pin installs anew.
$(VENV)/.torch: $(CHECKED)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[torch]'
	touch $@

$(VENV)/.all: $(VENV)/.torch
	$(PIP) --editable '.[torch,dev]' tensorflow-cpu keras
	touch $@

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
