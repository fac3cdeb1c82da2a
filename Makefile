# Everything runs in a virtual environment of its own; each target is complete on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test coverage lint docs minimal wheel clean
demo: $(INSTALLED)
	$(BIN)/nextstep generate "red apple, noto style, white background" --seed 1 -o demo.png

# Shared out to as many processes as there are cores; PYTEST_ARGS="-n 0" runs them one after another.
test: $(INSTALLED)
	$(BIN)/pytest -q -n auto --dist loadfile tests $(PYTEST_ARGS)

coverage: $(INSTALLED)
	$(BIN)/coverage run -m pytest -q tests $(PYTEST_ARGS)
	$(BIN)/coverage xml -q
	$(BIN)/coverage report --skip-covered

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

# torch's build for CPUs, for every Python, comes from PyTorch's own index; make TORCH_INDEX= takes what
# pip finds elsewhere, which is a build for CUDA on Linux.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Where that index cannot be reached, pip is quick to go on without it.
TORCH_FROM := $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX))
$(INSTALLED): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH_FROM) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,train,data,eval,serve,heif,lab]'
	$(BIN)/python src/nextstep/kernels/targets.py
	touch $@

# Every module, as it is installed without an extra.
minimal:
	$(PYTHON) -m venv build/minimal
	build/minimal/bin/pip install -q --disable-pip-version-check $(TORCH_FROM) -c constraints.txt .
	build/minimal/bin/python scripts/import_modules.py

# With compiled kernels; for other machines than this one see tool.cibuildwheel in pyproject.toml.
wheel: $(INSTALLED)
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:
	rm -rf $(VENV) build dist site demo.png .coverage coverage.xml src/nextstep/kernels/lib
