# make demo   the whole path on a real language model
# make test   ruff, mypy and the whole test suite
# make setup  the part that both share: .venv with pinned dependencies

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test clean

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitwright needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@for tool in g++ perl git; do command -v $$tool >/dev/null || \
	  { echo "$$tool is missing; install it: apt-get install g++ perl git"; exit 2; }; done
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv is missing; install it: apt-get install python3-venv"; exit 2; }
	@echo "installing pinned dependencies into $(VENV) (torch first; a few minutes)"
	@$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/pip install --quiet -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@$(BIN)/bitwright codesign --out results/demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# One thread for torch in each of the two workers: four on two cores wait for each other.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist worksteal -q --durations=15

clean:
	rm -rf $(VENV) build results .mypy_cache .pytest_cache .ruff_cache
