# The same commands for a person, a hook and CI. `make` alone lists them.
PYTHON ?= python3
# The torch that records and tests were made with; another one: make setup TORCH="torch torchvision"
TORCH ?= torch==2.14.1 torchvision==0.29.1
K ?=
EPOCHS ?= $(if $(DATA),1,3)
BIN := .venv/bin
DEMO := demo
# gpu-check takes the interpreter that PYTHON= names as it is, and installs nothing
GIVEN := $(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON))
GPU_PYTHON := $(or $(GIVEN),$(BIN)/python)
GPU_SECONDS ?= 600

# Where the peers' environments go, one folder each
PEERS ?= .venv-peers

.PHONY: help setup check fix test test-long demo bench records gpu-check peers gate
help:
	@echo 'make setup         .venv with torch, tinyvgg and its development tools'
	@echo 'make demo          make images, pack, train, score: 3 to 7 minutes on 2 cores'
	@echo 'make demo DATA=x   the same on real folders or a zip (EPOCHS=1)'
	@echo 'make test [K=x]    the tests, or those whose name matches x'
	@echo 'make test-long     the tests that take long, and no others'
	@echo 'make check         formatting, lint, types: changes nothing'
	@echo 'make fix           formatting and lint, writing'
	@echo 'make bench         images/sec of every stage on this machine'
	@echo 'make records       the full benchmarks on DATA=, an hour'
	@echo 'make peers         environments of the peers, in PEERS=.venv-peers'
	@echo 'make gate          ratios to ceilings of this machine, seconds'
	@echo 'make gpu-check     on a machine with a GPU: its tests and its benchmark, one record'
	@echo 'make gpu-check PYTHON=python3   the same with that interpreter, without a .venv'

# The stamp carries what was installed from: a second call does nothing.
setup: .venv/installed
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tinyvgg needs Python 3.11 or newer; pass PYTHON=python3.12, say")'
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	if [ -d .git/hooks ] && [ ! -e .git/hooks/pre-commit ]; then printf '#!/bin/sh\nexec make check\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit; fi
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Half of the suite on each of two processes of one thread: they do not wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal $(if $(K),-k '$(K)',-m 'not long')

test-long: setup
	$(BIN)/pytest -q -m long

# Fails under 90 % on the synthetic images; real images may score anything.
demo: setup
	rm -rf $(DEMO)
	$(if $(DATA),,$(BIN)/tinyvgg synth $(DEMO)/images)
	$(BIN)/tinyvgg pack $(or $(DATA),$(DEMO)/images) $(DEMO)/packed
	$(BIN)/tinyvgg train $(DEMO)/packed --out $(DEMO)/run --epochs $(EPOCHS) $(if $(DATA),,--batch-size 32)
	$(BIN)/tinyvgg evaluate $(DEMO)/run/best.pt $(DEMO)/packed $(if $(DATA),,--min-top1 0.9)

# The short suite, on DATA or on synthetic images: a table.
bench: setup
	rm -rf $(DEMO)/bench
	$(if $(DATA),,$(BIN)/tinyvgg synth $(DEMO)/bench/images)
	$(BIN)/tinyvgg pack $(or $(DATA),$(DEMO)/bench/images) $(DEMO)/bench/packed
	$(BIN)/tinyvgg bench $(DEMO)/bench/packed

# The full suite on DATA, a folder-per-class tree: an hour; commit the records it writes.
records: setup
	$(if $(DATA),,$(error make records needs DATA=, a folder of real images))
	test -d $(DEMO)/real || $(BIN)/tinyvgg pack $(DATA) $(DEMO)/real
	$(BIN)/python -m benchmarks.pack $(DATA)
	$(BIN)/python -m benchmarks.loaders $(DEMO)/real $(DATA)
	$(BIN)/python -m benchmarks.dali $(DEMO)/real $(DATA)
	$(BIN)/python -m benchmarks.scaling $(DEMO)/real
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.end_to_end $(DEMO)/real $(DATA)
	$(BIN)/python tools/render_records.py

peers: setup
	$(BIN)/python -m benchmarks.peers.install $(PEERS)

# Ratios of speeds that must hold on any machine.
gate: setup
	$(BIN)/python -m benchmarks.gate

# What only a GPU can show. DATA= takes real images instead of 20,000 synthetic ones, adds seconds
# to 60 % and the peers, too; commit the record. The benchmark takes GPU_SECONDS.
gpu-check: $(if $(GIVEN),,setup)
	TINYVGG_REQUIRE_GPU=1 $(GPU_PYTHON) -m pytest -q -m 'gpu or gpu_static or dali'
	rm -rf $(DEMO)/gpu
	$(if $(DATA),,$(GPU_PYTHON) -m tinyvgg.cli synth $(DEMO)/gpu/images --train-per-class 2000)
	$(GPU_PYTHON) -m tinyvgg.cli pack $(or $(DATA),$(DEMO)/gpu/images) $(DEMO)/gpu/packed
	DATA='$(DATA)' $(GPU_PYTHON) -m benchmarks.gpu $(DEMO)/gpu/packed --seconds $(GPU_SECONDS)
