# medcoss: `make demo` shows the whole path, `make test` checks it. Both set up .venv first.
VENV    ?= .venv
PYTHON  ?= python3
# cuda where an NVIDIA driver answers, else cpu; say FLAVOUR=cpu to choose.
FLAVOUR ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
BIN     := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(FLAVOUR)

.PHONY: demo test test-all check bench install clean

# DATA=DIR takes real files, laid out as DIR/{report,xray,ct,mri,pathology}, instead of made ones.
demo: $(INSTALLED)
	$(BIN)/python launch/demo.py $(if $(DATA),--data "$(DATA)")

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "long or not long" --timeout=3600

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	for name in attention loader preprocess; do $(BIN)/python -m benchmarks.$$name || exit 1; done

install: $(INSTALLED)

$(INSTALLED): requirements/base.txt requirements/$(FLAVOUR).txt requirements/dev.txt pyproject.toml
	@echo "Installing the pinned $(FLAVOUR) requirements into $(VENV) (about 2.5 GB, two minutes)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "error: Python 3.11 is needed (the pins are its): say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements/base.txt -r requirements/$(FLAVOUR).txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Everything that was made here, the environment and the demo's results included; your own raw/, runs/ and shards/ stay.
clean:
	rm -rf $(VENV) runs/demo shards/demo shards/demo.private raw/demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find medcoss preprocess launch tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
