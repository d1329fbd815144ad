# `make suites`: the suites on the bundled reference model. `make test`: the tests of the harness; `make test-engines`: those with real
# engines, which are slow. Each sets up what it needs first.
PYTHON ?= python3
comma := ,
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CORES := $(shell nproc 2>/dev/null || echo 2)
# An engine under test has one thread (tests/engines/conftest.py).
PROCESSES ?= $(CORES)
# What `make suites` tests unless ARGS says otherwise.
ARGS_OF_SUITES := $(or $(ARGS),--quantization=none$(comma)int8$(comma)nf4)
# NumPy's matrices are small here: threads of its own wait for each other, on a busy machine for most of the time.
export OPENBLAS_NUM_THREADS ?= 1
DEFAULT_ENGINE := suites,transformers,bitsandbytes

.PHONY: suites test test-engines test-oldest lint benchmarks clean

suites: $(VENV)/.suites
	$(BIN)/python -m pytest suites/ $(ARGS_OF_SUITES)

# A file's engines are started once: its tests stay in one process.
test: $(VENV)/.test
	$(BIN)/python -m pytest tests/unit tests/plugin -n $(CORES) --dist=loadfile $(ARGS)

test-engines: $(VENV)/.test
	$(BIN)/python -m pytest tests/engines -m "not alone" -n $(PROCESSES) --dist=loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m pytest tests/engines -m alone $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(ARGS)

# The plugin on the oldest pytest that it supports.
test-oldest: $(VENV)-oldest/.done
	$(VENV)-oldest/bin/python -m pytest -c /dev/null --rootdir=. --import-mode=importlib -p pytester -p no:cacheprovider \
		tests/plugin -n $(CORES) --dist=loadfile $(ARGS)

# That pytest alone is its own: all else, this package and the engines included, is what the other environment has.
$(VENV)-oldest/.done: $(VENV)/.test
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check pytest==8.4.0
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$(echo $(VENV)-oldest/lib/python3*/site-packages)/the_other_environment.pth
	touch $@

# torch comes first and alone, so that what the constraints pin is what everything after it finds.
$(VENV)/.suites: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[$(DEFAULT_ENGINE)]'
	touch $@

$(VENV)/.test: $(VENV)/.suites
	$(PIP) -e '.[$(DEFAULT_ENGINE),datasets,openai,test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
