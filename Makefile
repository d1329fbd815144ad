# `make suites`: the suites on the bundled reference model. `make test`: the tests of the harness. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEFAULT_ENGINE := suites,transformers,bitsandbytes

.PHONY: suites test lint clean

suites: $(VENV)/.suites
	$(BIN)/python -m pytest suites/ $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest tests/ $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and alone, so that what the constraints pin is what everything after it finds.
$(VENV)/.suites: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[$(DEFAULT_ENGINE)]'
	touch $@

$(VENV)/.test: $(VENV)/.suites
	$(PIP) -e '.[$(DEFAULT_ENGINE),datasets,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
