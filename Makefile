# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# Each sets itself up; nothing is installed outside .venv and ~/.cache/qwen3-stack.
PYTHON ?= python3
CACHE ?= $(HOME)/.cache/qwen3-stack
CALLS ?= data/calls.jsonl
ENVIRONMENT ?= local
LOGS ?= logs
URL ?= http://127.0.0.1:8000
BIN := .venv/bin
export QWEN3_STACK_CACHE := $(CACHE)

.DEFAULT_GOAL := help
.PHONY: help setup demo train deploy undeploy monitor quick-test test check fix figures lock clean training-env export-env lmdeploy-env policy-env ollama

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/.ready  ## the default environment: server, benchmarks, infra; no torch

.venv/.ready: requirements/uv.txt requirements/default.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "setting up .venv (about 1.5 GB, a minute) ..." >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip install -q -p $(BIN)/python --require-hashes -r requirements/default.txt
	@$(BIN)/uv pip install -q -p $(BIN)/python --no-deps -e .
	@touch $@

demo: setup  ## two deployments, measured against each other on Chinese complaint calls (CALLS=my.jsonl)
	@$(BIN)/python -m benchmarks.demo calls=$(CALLS)

deploy: setup  ## a server on this machine, in an environment of its own (ENVIRONMENT=local)
	@$(BIN)/python -m infra.agent deploy $(ENVIRONMENT)

undeploy: setup  ## stop it, remove all that was made for it, and end the agent
	@$(BIN)/python -m infra.agent cleanup $(ENVIRONMENT) && $(BIN)/python -m infra.agent shutdown

# With OLLAMA=http://127.0.0.1:11434 a plain Ollama in place of our server; what asks it through the address that
# `make monitor` prints is recorded. MODEL=NAME where it has several.
monitor: setup  ## server, recording and page on this machine; Ctrl-C ends all (OLLAMA=URL, LOGS=logs)
	@$(BIN)/python -m monitoring.laptop logs=$(LOGS) \
		$(if $(OLLAMA),ollama=$(OLLAMA),environment=environments/$(ENVIRONMENT).yml)

quick-test: setup  ## three Chinese prompts: latency 10 times, 2 users for 30 s, a report (URL=... or OLLAMA=URL)
	@$(BIN)/python -m benchmarks smoke $(if $(OLLAMA),ollama=$(OLLAMA),url=$(URL)) $(if $(MODEL),model=$(MODEL))

test: setup  ## the tests; names what it skipped and why
	@$(BIN)/python -m pytest -q $(PYTEST)

check: setup  ## ruff, mypy, formats
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fix: setup  ## what ruff can repair
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

train: setup training-env export-env  ## the embedded classifier anew, from nothing to served: 5 minutes (TRAIN="seed=1 ...")
	@$(BIN)/python -m training.tiny $(TRAIN)

figures: setup  ## every number of the README, measured here (30 to 60 minutes)
	@$(BIN)/python -m benchmarks.figures $(FIGURES)

training-env: $(CACHE)/venvs/training/.ready  ## torch, transformers, peft (6 GB)
export-env: $(CACHE)/venvs/export/.ready  ## optimum-intel, nncf: prepares OpenVINO models (6 GB)
lmdeploy-env: $(CACHE)/venvs/lmdeploy/.ready  ## LMDeploy 0.18 (7.4 GB)
policy-env: $(CACHE)/venvs/policy/.ready  ## checkov and other scanners (0.3 GB)

$(CACHE)/venvs/%/.ready: requirements/%.txt | setup
	@echo "setting up the $* environment in $(CACHE)/venvs/$* ..." >&2
	@$(PYTHON) -m venv $(CACHE)/venvs/$*
	@$(BIN)/uv pip install -q -p $(CACHE)/venvs/$*/bin/python --require-hashes -r requirements/$*.txt
	@touch $@

lock: setup  ## compile requirements/*.txt anew from pyproject.toml
	@set -e; for name in default server training export lmdeploy policy; do \
		extras="--extra $$name"; [ $$name = default ] && extras="--extra infra --extra server --extra benchmarks --extra monitoring --extra dev"; \
		[ $$name = server ] && extras="$$extras -c requirements/default.txt"; : "the image holds what the tests ran with"; \
		$(BIN)/uv pip compile -q pyproject.toml $$extras --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-emit-find-links --no-annotate --no-header -o requirements/$$name.txt; done

clean:  ## forget the environment and results
	rm -rf .venv runs logs
