# Two commands: `make demo` shows real masks on real photographs, `make test` runs every check.
# Needed beforehand: python3 >= 3.11 with venv, and make. A GPU machine gets faiss-gpu, every other faiss-cpu.

PYTHON ?= python3
VENV := .venv
READERS := $(VENV)/readers/stamp
SBOM := $(VENV)/sbom/bin/cyclonedx-py
# Without byte code of all that is never imported, which would take a minute; then what is must be kept, or each of the
# hundreds of processes that Ray starts compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := python -m pip install --quiet --disable-pip-version-check --no-compile
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test chaos docs dist
demo: $(VENV)/demo.stamp
	$(VENV)/bin/reco-ray demo --out reco-demo

test: $(VENV)/dev.stamp $(READERS) $(SBOM)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/deptry --no-ansi .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/python -m pytest

# What `make test` leaves out: nodes, drivers and servers killed in the middle, and a few tests for the time they take.
chaos: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -m chaos

# For contributors, see CONTRIBUTING.md.
docs: $(VENV)/dev.stamp
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo build/site/index.html

dist: $(VENV)/dev.stamp $(SBOM)
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(SBOM) environment --pyproject pyproject.toml --output-reproducible -o dist/reco-ray.cdx.json $(VENV)
	cd dist && sha256sum -- * >SHA256SUMS

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("reco-ray needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/$(INSTALL) torch torchvision
	$(VENV)/bin/$(INSTALL) -e ".[$(FAISS),demo]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(VENV)/bin/$(INSTALL) -e ".[$(FAISS),demo,heic,train,sweep,export,export-masks,mlflow,serve,docs,dev]"
	@touch $@

# In an environment of its own: beside Ray, a parser of addresses that comes with it would be imported by each of Ray's
# processes, for a second or two.
$(SBOM): | $(VENV)/bin/python
	$(VENV)/bin/python -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/$(INSTALL) "cyclonedx-bom>=5"

# The tools that read what `export-masks` writes, for the tests: they pin older versions of NumPy, Pillow and others. Torch,
# which one of them imports, is that of the environment around it.
$(READERS): tests/readers.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m venv $(VENV)/readers
	$(VENV)/readers/bin/$(INSTALL) -r tests/readers.txt
	$(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >$$($(VENV)/readers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/around.pth
	@touch $@
