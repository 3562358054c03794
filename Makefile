# `make` alone lists the targets. Needs python3, make and core tools only.
PYTHON ?= python3
# The torch that goes into the environment, before the project's own requirements: pip then keeps it.
# For instance: make demo TORCH='torch==2.8.0'
TORCH ?= torch==2.13.0
# Test processes (one more than cores: most tests wait for processes of their own), and options for pytest: make test JOBS=2 ARGS='-k lanes'
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 15) + 1)')
ARGS ?=
# What a run of fuzz or chaos starts from: the same number gives the same cases. It is printed.
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
# How much `make chaos` breaks, and how many requests it sends meanwhile.
FAULTS ?= 100
REQUESTS ?= 50000
# How long `make soak` runs.
MINUTES ?= 20

BIN := .venv/bin
# Python compiles a module at its first use, and most are never used; but not where it is told to keep nothing.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)
# One stamp for each TORCH, so that asking for another one installs it.
STAMP := .venv/.made-$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long fuzz chaos soak mutations crash-points lint types bench-all bench-check bench-depth bench-engine bench-floor bench-latency bench-memory bench-peers bench-stream bench-throughput clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

venv: $(STAMP) ## make .venv with torch (TORCH=...) and the development tools

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -e '.[worker,openai,batch,dev]'
	rm -f .venv/.made-*
	touch $@

demo: $(STAMP) ## start a whole stack on this machine and watch it serve
	$(BIN)/stoker demo

# Ends with pytest's own summary line, after the coverage report. Fails if the tests or the coverage gate failed.
# A file's tests run in one process, which starts what they share (models, stacks) once.
test: $(STAMP) ## run the tests under coverage, with its gate
	@$(BIN)/coverage erase; log=$$(mktemp); \
	{ $(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS) 2>&1; echo $$? > $$log.rc; } | tee $$log; \
	tests=$$(cat $$log.rc); \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; gate=$$?; \
	grep -E '(passed|failed|error|skipped|deselected|no tests ran).* in [0-9.]+s' $$log | tail -n 1; \
	rm -f $$log $$log.rc; test "$$tests" -eq 0 && test "$$gate" -eq 0

test-long: $(STAMP) ## run the tests that take minutes: chaos, crash points, a group of ranks that loses one
	$(BIN)/python -m pytest -m long $(ARGS)

# The same tests as in `make test`, with 1,000 cases for each 20, on one process, which counts them.
fuzz: SEED := $(SEED)
fuzz: $(STAMP) ## try 30,000 wrong requests, payloads, script arguments and settings
	@echo "SEED=$(SEED)"
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz --hypothesis-seed=$(SEED) -o faulthandler_timeout=0 $(ARGS)

# Each of its own checks must find its bug; the random state machine may. More options: make mutations ARGS='--seconds 60'
mutations: $(STAMP) ## plant bugs in scripts and services, and see that each is found
	@PYTHONPATH=tests $(BIN)/python -m mutations.by_machine $(ARGS)

# Two lives of a small stack for each call of Redis and each side effect. More options: make crash-points ARGS='--only begin'
crash-points: $(STAMP) ## end or stop a process at every point of every role, and see that nothing is lost
	@PYTHONPATH=tests $(BIN)/python -m crash_points.every_point --jobs $(JOBS) $(ARGS)

# MINUTES: how long it runs; the same SEED gives the same small faults. Ends with 0 if nothing grew and nothing is left.
soak: SEED := $(SEED)
soak: $(STAMP) ## run a stack for 20 minutes, and see that no process and no key of Redis grows
	@PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) --seed $(SEED) $(ARGS)

# More options, for instance: make chaos SEED=1 FAULTS=20 REQUESTS=5000 ARGS='--kinds zombie poison --keep'
chaos: SEED := $(SEED)
chaos: $(STAMP) ## break a running stack 100 times under 50,000 requests, and look for what was lost
	@PYTHONPATH=tests $(BIN)/python -m chaos --seed $(SEED) --faults $(FAULTS) --requests $(REQUESTS) $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check the types
	$(BIN)/mypy

# More options, for instance: make bench-engine ARGS='--requests 64 --rounds 9'
bench-engine: $(STAMP) ## tokens a second of our engines against transformers' own ways
	@$(BIN)/python bench/engine.py $(ARGS)

bench-throughput: $(STAMP) ## requests a second from the SDK to the result, beside the floor
	@$(BIN)/python bench/throughput.py $(ARGS)

bench-floor: $(STAMP) ## the least work that a safe queue in Redis could do
	@$(BIN)/python bench/floor.py $(ARGS)

bench-latency: $(STAMP) ## milliseconds of one request alone, and in an open loop
	@$(BIN)/python bench/latency.py $(ARGS)

bench-depth: $(STAMP) ## what submit and dispatch cost with 1,000 to a million waiting
	@$(BIN)/python bench/depth.py $(ARGS)

bench-memory: $(STAMP) ## bytes of Redis that a waiting request takes
	@$(BIN)/python bench/memory.py $(ARGS)

bench-stream: $(STAMP) ## what streamed answers cost Redis, and how late their tokens come
	@$(BIN)/python bench/stream.py $(ARGS)

# Installs each queue beside which Stoker is measured into .peers/. For instance: make bench-peers ARGS='--peers huey mosec'
bench-peers: $(STAMP) ## requests a second of Stoker, of other queues and of model servers
	@$(BIN)/python bench/peers.py $(ARGS)

# All of it takes about an hour. For instance: make bench-all ARGS='--only latency memory', or ARGS=--write for the page alone
bench-all: $(STAMP) ## run the benches above, and write docs/BENCHMARKS.md
	@$(BIN)/python bench/benchmarks.py $(ARGS)

# For instance: make bench-check ARGS='--only latency memory', or ARGS='bench/results/*.json' for what was measured before
bench-check: $(STAMP) ## measure again, and fail where a ratio is worse than the committed one
	@$(BIN)/python bench/check.py $(ARGS)

clean: ## remove what was made here, .venv too
	rm -rf .venv .peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
