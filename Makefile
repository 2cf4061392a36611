# Two commands for everyone: `make demo` and `make test`. Nothing here needs root, a GPU, or more than the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?=

.PHONY: install demo test check gpu-check lock clean

install: $(STAMP)

# Installed again only when what it depends on has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/braingemma demo $(if $(OUT),--out '$(OUT)')

# Files go to the workers in the order of tests/conftest.py: what waits longest is begun first. Four workers for two
# cores: a test of the service waits as long as it works. The slowest are listed, so that they stay few.
test: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not slow' --durations=20

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# On a machine with an NVIDIA GPU, under 6 minutes; DEVICE=cpu tries the check itself, small.
DEVICE ?= cuda
gpu-check: $(STAMP)
	$(BIN)/braingemma bench gpu --device $(DEVICE) $(if $(OUT),--out '$(OUT)')

# requirements.lock anew from pyproject.toml and constraints.txt: versions and hashes of everything but torch.
lock:
	$(PYTHON) -m venv .lock-venv && .lock-venv/bin/pip install --quiet pip-tools
	(sed -n '/^#/p' requirements.lock; .lock-venv/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --unsafe-package torch --constraint constraints.txt -o .lock-venv/lock pyproject.toml >/dev/null; \
	  sed '/^#/d' .lock-venv/lock) > .lock-venv/whole && mv .lock-venv/whole requirements.lock; rm -rf .lock-venv

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
