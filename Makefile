# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.

# The first Python on PATH that requirements.txt is tested with, unless told: make PYTHON=/path/to/python3.11
ifndef PYTHON
  PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; exit; }; \
    done; echo python3)
endif
# The datasets' own tools want numpy < 2, which is built for Python up to 3.12.
ifndef INTEROP_PYTHON
  INTEROP_PYTHON := $(shell for p in $(PYTHON) python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info >= (3, 13))' 2>/dev/null && { echo $$p; exit; }; \
    done; echo $(PYTHON))
endif
# What the machine has, unless told: cpu, cuda13, cuda12 or tpu. (Plain Google VMs share the TPU's PCI vendor, so look for both.)
ifndef ACCELERATOR
  ACCELERATOR := $(shell \
    if nvidia-smi -L >/dev/null 2>&1; then echo cuda13; \
    elif ls /dev/accel[0-9]* >/dev/null 2>&1; then echo tpu; \
    elif ls /dev/vfio/[0-9]* >/dev/null 2>&1 && grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; then echo tpu; \
    else echo cpu; fi)
endif
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
TEST_WORKERS ?= $(shell test $(CORES) -gt 4 && echo 4 || echo $(CORES))

# Compiled programs are kept from one command to the next.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

# A whole environment holds a stamp named after the content it was made from: $(call key,INTERPRETER,FILES)
key = $(shell { pwd; echo $(1) $(ACCELERATOR); $(1) -VV; cat $(2); } 2>/dev/null | cksum | cut -d' ' -f1)
ENV := .venv/.made-$(call key,$(PYTHON),requirements.txt pyproject.toml)
ENV_DEV := .venv/.made-dev-$(call key,$(PYTHON),requirements.txt requirements-dev.txt pyproject.toml)
ENV_AOT := .libtpu/.made-$(call key,$(PYTHON),requirements-aot.txt)
ENV_INTEROP := .venv-interop/.made-$(call key,$(INTEROP_PYTHON),tests/interop/requirements.txt)

.PHONY: help env env-dev env-aot env-interop demo test test-slow lint format pins clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(ENV)  ## make .venv from requirements.txt, for the GPU or TPU where there is one

env-dev: $(ENV_DEV)  ## add what the tests and the linter need

env-aot: $(ENV_AOT)  ## add the TPU compiler (0.7 GB) for placerec_jax.aot; no TPU needed

env-interop: $(ENV_INTEROP)  ## make .venv-interop with the datasets' own tools

DEMO := --config=configs/maplocnet.py --workdir=runs/demo

# Without this the large temporaries of every step go back to the system and are paged in again: on two CPU cores
# a step takes about a fifth longer (0.37 to 0.42 s against 0.30 to 0.32 s for the `cpu` recipe).
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: export MALLOC_MMAP_MAX_ ?= 0
demo: export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
demo: env  ## build the city, train MapLocNet, evaluate, write runs/demo/report/; goes on where it was stopped
	.venv/bin/python -m placerec_jax.train $(DEMO)
	.venv/bin/python -m placerec_jax.evaluate $(DEMO)
	@echo 'Open in a browser: file://$(CURDIR)/runs/demo/report/index.html'

# loadfile: what a test file prepares once is prepared once, not once a worker.
PYTEST := .venv/bin/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile

test: lint  ## the linter and all fast tests (more options: PYTEST_ARGS='-k city')
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: env-dev env-interop  ## the long tests, those with the datasets' own tools among them
	$(PYTEST) -m slow $(PYTEST_ARGS)

lint: env-dev  ## ruff: rules and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: env-dev  ## let ruff mend what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

pins:  ## re-make requirements.txt from pyproject.toml; pins that still fit stay (UPGRADE=1: the newest of all)
	@set -eu; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(PYTHON) -m venv "$$work/venv"; "$$work/venv/bin/python" -m pip install --quiet uv; \
	cp requirements.txt "$$work/pins"; \
	"$$work/venv/bin/uv" pip compile pyproject.toml --extra prep --universal --python-version 3.11 \
	  --fork-strategy fewest --no-header --no-annotate --quiet $(if $(UPGRADE),--upgrade) \
	  --output-file "$$work/pins" >/dev/null; \
	{ sed -n '/^#/p' requirements.txt; sed '/^#/d' "$$work/pins"; } > "$$work/requirements.txt"; \
	cp "$$work/requirements.txt" requirements.txt; git --no-pager diff --stat -- requirements.txt

clean:  ## remove environments and caches; data/ and runs/ stay
	rm -rf .venv .venv-interop .libtpu .cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call begin_install,FOLDER,INTERPRETER): a venv that `end_install` has not closed is begun again, because pip would take a
# package that it was stopped in the middle of for a whole one.
define begin_install
@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "Python 3.11 or newer is needed, and $(2) is: $$($(2) --version 2>&1)." \
    "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@if [ -e $(1)/.installing ] || [ "$$($(1)/bin/python -VV 2>&1)" != "$$($(2) -VV)" ]; then rm -rf $(1); fi
@mkdir -p $(1) && touch $(1)/.installing && rm -f $(1)/.made-*
@[ -x $(1)/bin/pip ] || $(2) -m venv $(1) || { \
  echo "$(2) -m venv failed; on Debian and Ubuntu it comes with: apt install python3-venv" >&2; exit 1; }
endef

# $(call end_install,FOLDER,STAMPS)
define end_install
@touch $(2) && rm $(1)/.installing
endef

$(ENV):
	$(call begin_install,.venv,$(PYTHON))
	.venv/bin/python -m pip install --requirement requirements.txt
	.venv/bin/python -m pip install --no-deps --no-build-isolation --editable .
	$(if $(filter-out cpu,$(ACCELERATOR)),.venv/bin/python -m pip install 'jax[$(ACCELERATOR)]' --constraint requirements.txt)
	$(call end_install,.venv,$@)

$(ENV_DEV): $(ENV)
	@touch .venv/.installing && rm -f .venv/.made-*
	.venv/bin/python -m pip install --requirement requirements-dev.txt --constraint requirements.txt
	$(call end_install,.venv,$(ENV) $@)

$(ENV_AOT): $(ENV)
	rm -rf .libtpu
	.venv/bin/python -m pip install --no-deps --target .libtpu --requirement requirements-aot.txt
	touch $@

$(ENV_INTEROP):
	$(call begin_install,.venv-interop,$(INTEROP_PYTHON))
	.venv-interop/bin/python -m pip install --requirement tests/interop/requirements.txt
	$(call end_install,.venv-interop,$@)
