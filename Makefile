# make demo: everything, on a face.   make test: everything, tested.   Both install what they need; a second call installs and fetches nothing.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(shell cat constraints.txt pyproject.toml | sha256sum | cut -c1-16)
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint fit bench bench-data bench-training chaos soak soak-training prove-tokenizer prove-predictor clean prove-dit
.DEFAULT_GOAL := demo

demo: $(STAMP)
	@$(BIN)/lato assets fetch
	@$(BIN)/lato quickstart --work-dir work/quickstart

test: lint
	@$(BIN)/lato assets fetch
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal --durations=10  # one more than cores: much of a test is waiting

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -n auto
	@$(BIN)/lint-imports

# Time and memory of the models; writes docs/benchmarks.md (about ten minutes).
bench: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.model_speed

# The data builder against a plain loop; writes docs/benchmarks_data.md (about twenty minutes).
bench-data: $(STAMP)
	@$(BIN)/lato assets fetch franck
	@$(BIN)/python -m tests.benchmarks.data_speed

# Training, and what feeds it; writes docs/benchmarks_training.md (about ten minutes).
bench-training: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.training_speed

# Does the DiT follow landmarks? Writes docs/proof_dit.md (about 85 minutes of one idle core; interrupted, the same command goes on).
MINUTES ?= 84
SEEDS ?= 3
prove-dit: $(STAMP)
	@$(BIN)/python -m tests.proofs.prove_dit --minutes $(MINUTES) --seeds $(SEEDS)

# 50 kills of each victim on real Ray, the bytes compared (about three hours).
chaos: $(STAMP)
	@$(BIN)/lato assets fetch
	@$(BIN)/python -m tests.data_pipeline.chaos --seeds 50

# 10,000 sources, something killed every minute, the bytes compared with a build left alone (about half an hour). Less: make soak SHARE=0.05
SHARE ?= 1
soak: $(STAMP)
	@$(BIN)/lato assets fetch && $(BIN)/lato assets fetch franck
	@$(BIN)/python -m tests.data_pipeline.soak --share $(SHARE)

# Every stage at every ZeRO stage through Ray Train, ranks killed, the ends compared (about half an hour).
soak-training: $(STAMP)
	@$(BIN)/python -m tests.training.soak

# The tokenizer and the predictor learn, on people they never saw; write docs/proof_tokenizer.md and docs/proof_predictor.md (each under an hour of one core, resumable).
prove-tokenizer: $(STAMP)
	@$(BIN)/lato assets fetch && $(BIN)/lato assets fetch franck
	@$(BIN)/python -m tests.proofs.prove_tokenizer

prove-predictor: $(STAMP)
	@$(BIN)/python -m tests.proofs.prove_predictor

# Fits the two data files that are measured on synthetic people, and prints how well they do.
fit: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.find_landmark_vertices "$$($(BIN)/python -c 'from infra import assets; print(assets.folder())')"
	@$(BIN)/python -m tests.benchmarks.fit_expressions "$$($(BIN)/python -c 'from infra import assets; print(assets.folder())')" --write

$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "needs Python 3.11 (make PYTHON=/path/to/python3.11)"; exit 1; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq "setuptools==80.9.0" "wheel==0.45.1"
	@grep -v '^#' constraints.txt | xargs -P 2 -n 63 $(BIN)/pip install -qq --no-compile --no-deps  # in four lots, two at a time: most of it is unpacking, on one core
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/|py312_' $(VENV)/lib  # on all cores, but for what is of another Python: where none may be written later, every process would compile it
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@ldconfig -p | grep -q libEGL.so.1 && ldconfig -p | grep -q libGLESv2.so.2 || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then apt-get -qq update && apt-get -qq install -y libegl1 libgles2 > /dev/null; \
	  else echo "mediapipe needs two system libraries: apt-get install libegl1 libgles2"; exit 1; fi
	@rm -f $(VENV)/installed-*
	@touch $@

clean:
	rm -rf $(VENV) work
