# Everything here sets itself up in .venv; all it needs is Python 3.11 (or newer) and a package registry.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROMPT ?= a red apple

.PHONY: help quickstart wheel check-install test test-slow gpu-check check format docs clean

help:            ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'torch==2.13.0'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[build,export,onnxruntime,openvino,tensorrt-rtx,bench,dev]'
	@touch $@

quickstart: $(INSTALLED)  ## Compile the emoji checkpoint and generate an image
	$(BIN)/sdexport compile --recipe engines/emoji.toml
	$(BIN)/sdexport generate engines/emoji "$(PROMPT)" --steps 50 --seed 0 -o quickstart.png

wheel: $(INSTALLED)       ## Build the wheel into dist/
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .

check-install: wheel      ## Install the wheel with each extra, lowest and newest versions, and generate; write docs/versions.md
	$(BIN)/python scripts/check_install.py dist/*.whl --write

test: $(INSTALLED)        ## Run the tests; fails below the floor of coverage, see pyproject.toml
	@$(BIN)/python -m slipcover -m pytest -q; code=$$?; $(BIN)/python scripts/coverage_summary.py; exit $$code

test-slow: $(INSTALLED)   ## Run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

gpu-check: $(INSTALLED)   ## On a machine with an NVIDIA GPU: build for it, test on it, write build/gpu-check/result.json
	$(BIN)/python scripts/gpu_check.py

check: $(INSTALLED)       ## Lint, types, import rules, drift of the generated documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/cli_docs.py --check
	$(BIN)/python scripts/api_docs.py --check
	$(BIN)/python scripts/results_page.py --check
	$(BIN)/python scripts/results_schema.py --check
	$(BIN)/python -m pytest -q tests/test_import_rules.py

format: $(INSTALLED)      ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)        ## Generate docs/cli.md, docs/api.md, the page over results, and the JSON Schema of results
	$(BIN)/python scripts/cli_docs.py
	$(BIN)/python scripts/api_docs.py
	$(BIN)/python scripts/results_page.py
	$(BIN)/python scripts/results_schema.py

clean:           ## Remove what was built, the environment included
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis quickstart.png
	find engines -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
