# Everything lives in .venv; nothing is installed outside it.
# The newest Python there is, pyenv's too: from 3.12 on coverage counts lines without a tracer, which
# takes a third of the tests' time.
PYTHON ?= $(shell for version in 3.13 3.12; do \
	  for python in python$$version "env PYENV_VERSION=$$version python$$version"; do \
	    $$python -m venv -h >/dev/null 2>&1 && { echo $$python; exit; }; done; done; echo python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test lint types docs unit requirements wheel clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'deploykit needs Python 3.10 or newer; name one with: make PYTHON=python3.12'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing into .venv (about 6 GB, torch is the largest part)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q deploykit exporters plugins calib
	@touch $@

quickstart: $(READY)  ## checkpoint -> INT8 engine -> AP and FPS, on the example detector; QAT=1 trains too
	@$(BIN)/python examples/shapes/quickstart.py $(if $(QAT),--qat)

test: lint types docs unit  ## everything that must pass before a change lands

lint: $(READY)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	@$(BIN)/mypy

docs: $(READY)  ## the pages of docs/ with the API reference, into out/site
	@NO_MKDOCS_2_WARNING=1 COLUMNS=80 $(BIN)/mkdocs build --quiet --strict

CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info > (3, 12) else "ctrace")')
unit: $(READY)  ## pytest on two processes of one thread each, with coverage of deploykit/
	@COVERAGE_CORE=$(CORE) OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=90

wheel: $(READY)  ## build the wheel into dist/
	@rm -rf build
	@$(BIN)/python -m build --wheel --no-isolation

requirements: $(READY)  ## pin anew, for every Python from 3.10 on
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra export --extra rtx --extra eval \
	  --extra shapes --extra zoo --extra ray --extra plan --group dev --universal --python-version 3.10 --upgrade --no-annotate \
	  --no-emit-index-url --custom-compile-command 'make requirements' -o requirements/dev.txt

clean:  ## remove what the build made, .venv included
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache
