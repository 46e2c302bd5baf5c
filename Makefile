# Two commands: `make demo` shows real masks on real photographs, `make test` runs every check.
# Needed beforehand: python3 >= 3.11 with venv, and make. A GPU machine gets faiss-gpu, every other faiss-cpu.

PYTHON ?= python3
VENV := .venv
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test
demo: $(VENV)/demo.stamp
	$(VENV)/bin/reco-ray demo --out reco-demo

test: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("reco-ray needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(FAISS),demo]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(FAISS),demo,train,sweep,export,mlflow,serve,dev]"
	@touch $@
