# make help   says what there is. The two first commands: make demo, make test.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
TEST_ARGS ?=
# Files are shared out among this many processes: most tests wait for real Consuls and real processes.
TEST_JOBS ?= 3
DEMO_ARGS ?=
BENCH_ARGS ?=
DIST ?= dist
BUILD ?= build

# The one file carries the native libraries for each of these; hosts differ (Debian 12: 3.11, Ubuntu 24.04: 3.12,
# Debian 13: 3.13, Ubuntu 26.04: 3.14). glibc 2.28 is that of RHEL 8 and Debian 10.
DIST_PYTHONS ?= 3.11 3.12 3.13 3.14
DIST_ARCHS ?= x86_64 aarch64
DIST_GLIBC ?= 2_28
dist_platforms = $(foreach arch,$(DIST_ARCHS),$(foreach py,$(DIST_PYTHONS),\
	--platform manylinux_$(DIST_GLIBC)_$(arch)-cp-$(py).0-cp$(subst .,,$(py))))

SEEDS ?= 2000
SIM_ARGS ?=

.PHONY: help venv test test-slow test-all check format demo sim bench consul datacenter dist clean distclean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## the virtual environment (made once, and again when its requirements change)

$(STAMP): pyproject.toml requirements/constraints.txt requirements/make-venv
	@requirements/make-venv $(VENV)
	@touch $@

consul: $(STAMP) ## where Consul is; fetched into the project's cache if need be
	@$(BIN)/python -m rebootd.consul.binary

test: $(STAMP) ## the quick suites (about 5 minutes on 2 cores); TEST_ARGS="-k words"
	@$(BIN)/python -m rebootd.consul.binary >/dev/null || true
	$(BIN)/pytest -q -m "not slow" -n $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

test-slow: $(STAMP) ## what takes long: the one file, killing at every step, large fleets
	@$(BIN)/python -m rebootd.consul.binary >/dev/null || true
	$(BIN)/pytest -q -m slow $(TEST_ARGS)

test-all: test test-slow ## both

check: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## lay the code out as check wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP) ## a whole cycle on this machine, with a killed leader; DEMO_ARGS="--racks 2 --machines 3"
	@$(BIN)/rebootd demo $(DEMO_ARGS)

sim: $(STAMP) ## the safety simulation; SEEDS=2000, SIM_ARGS="--profile hosts" or "--seed 17 -v" (docs/safety.md)
	$(BIN)/python -m tests.sim --seeds $(SEEDS) $(SIM_ARGS)

bench: $(STAMP) ## the figures of docs/performance.md; BENCH_ARGS="..."
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

datacenter: $(STAMP) ## a data center in a box: real hosts, load, faults (root, Debian's tools); KEEP=1 leaves it up
	@$(BIN)/python -m rebootd.consul.binary >/dev/null || true
	@$(BIN)/python -m tests.e2e.box check
	@$(BIN)/python -m tests.e2e.box rootfs
	@$(MAKE) -o $(STAMP) dist DIST=$(BUILD)/box DIST_PYTHONS=$$($(BIN)/python -m tests.e2e.box python) DIST_ARCHS=$$(uname -m)
	BOX=1 KEEP=$(KEEP) BOX_ONE_FILE=$(BUILD)/box/rebootd $(BIN)/pytest -s -m slow tests/e2e/test_datacenter*.py $(TEST_ARGS)

dist: $(STAMP) ## dist/rebootd: one file for hosts and Nomad (dist/rebootctl is a second name of it)
	@rm -rf $(BUILD)/wheel && mkdir -p $(BUILD)/wheel $(DIST)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-input --no-deps --wheel-dir $(BUILD)/wheel .
	@$(BIN)/python -m pex $(BUILD)/wheel/*.whl --constraints requirements/constraints.txt --use-pip-config \
		--entry-point rebootd.cli.main:packed --venv --sh-boot --compress $(dist_platforms) \
		--output-file $(BUILD)/rebootd
	@mv -f $(BUILD)/rebootd $(DIST)/rebootd && ln -f $(DIST)/rebootd $(DIST)/rebootctl
	@ls -l $(DIST)

clean: ## what make made, except the virtual environment
	rm -rf $(BUILD) $(DIST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

distclean: clean ## that too
	rm -rf $(VENV)
