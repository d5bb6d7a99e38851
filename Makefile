# Everything a newcomer needs: `make demo` and `make test` create .venv, install, and do their job.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## list the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort \
	  | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  make <stage>-eval   run one stage of configs/eval: CKPT=... [DATA=folder] [ARGS=...]"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned versions need Python 3.11 or newer, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), once, for some minutes ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## create .venv with everything pinned

demo: $(READY) ## MoCo-v3 beside MoCo-v3 + SER on generated images, about 3 minutes on 2 cores, ends with a picture
	@$(BIN)/ser-fit demo $(DEMO)

demo-photos: $(READY) ## the same on your own photographs: ROOT=folder
	@test -n "$(ROOT)" || { echo "say which folder: make $@ ROOT=~/pictures"; exit 2; }
	@$(BIN)/ser-fit demo --root "$(ROOT)" --run_dir runs/demo_photos $(DEMO)

test: $(READY) ## run the fast tests, about 3 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

test-slow: $(READY) ## run the slow tests: killed and resumed runs, several processes, mistakes by the hundred
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 8 --dist loadfile

faults: $(READY) ## kill runs at random moments and compare their last bits, about 40 minutes on 2 cores: FAULTS="--kills 12"
	@$(BIN)/python -m studies.faults.kills $(FAULTS)

check-gpu: $(READY) ## on a machine with a GPU: its results against the CPU's, speed and memory; writes docs/gpu.md
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "check-gpu needs a CUDA device, and torch sees none")'
	@timeout 300 $(BIN)/python -m pytest -q -m gpu tests/gpu
	@timeout 300 $(BIN)/python -m benchmarks.gpu

lint: $(READY) ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## ratios to named baselines, on an idle machine: [ROOT=folder of 32 px images, beside lightly's parts] [IMAGES=photographs]
	@$(BIN)/python -m benchmarks.ratios $(if $(ROOT),--root "$(ROOT)") $(if $(IMAGES),--images "$(IMAGES)") $(BENCH)

FASHION := moco moco_ser moco_ser_2plus4 dino_ser barlow_ser simclr_ser byol_ser simsiam_ser vicreg_ser
# moco_ser_2plus4 -> moco_ser_2plus4, the overlay of the data set, and what a word of the name needs after it
fashion-files = configs/$(1).yaml configs/fashion_mnist.yaml $(wildcard $(patsubst %,configs/fashion_mnist/%.yaml,$(subst _, ,$(1))))
fashion: $(addprefix fashion-,$(FASHION)) ## pretrain every objective on real Fashion-MNIST, 20 to 40 minutes each on 2 cores
	@$(BIN)/ser-fit compare $(addprefix runs/fashion_mnist/,$(FASHION))
fashion-%: $(READY)
	@$(BIN)/ser-fit fit $(addprefix --config ,$(call fashion-files,$*) configs/trainer/cpu.yaml) --ckpt_path last $(ARGS)

study: $(READY) ## ask the paper's questions on Fashion-MNIST: SER and its rivals, 28 runs, resumable
	@$(BIN)/python -m studies.fashion_mnist.run $(STUDY)
study-cifar10: $(READY) ## ask what SER does on CIFAR-10, 63 runs of about an hour on one core: STUDY="--root folder"
	@$(BIN)/python -m studies.cifar10.run $(STUDY)

%-eval: $(READY)
	@test -n "$(CKPT)" || { echo "say which checkpoint: make $@ CKPT=runs/moco_ser/checkpoints/last.ckpt [DATA=/data/imagenet]"; exit 2; }
	@$(BIN)/ser-fit evaluate --config configs/eval/$*.yaml --checkpoint "$(CKPT)" $(if $(DATA),--images "$(DATA)") $(ARGS)

evaluate: $(READY) ## run every stage whose images are there: CKPT=... [DATA=folder of data sets] [ARGS=--small]
	@test -n "$(CKPT)" || { echo "say which checkpoint: make $@ CKPT=runs/moco_ser/checkpoints/last.ckpt [DATA=/data]"; exit 2; }
	@$(BIN)/ser-fit evaluate-all --checkpoint "$(CKPT)" $(if $(DATA),--data_root "$(DATA)") $(ARGS)

clean: ## remove caches, keep .venv and runs
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help install demo demo-photos test test-slow faults check-gpu lint bench fashion study study-cifar10 evaluate clean
