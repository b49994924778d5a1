# make demo    install, then export, verify, build and time a compressed model
# make test    install, then run the tests (PYTEST_ARGS="-k name" narrows them, JOBS=1 runs one at a time)
# make attack  the long form of the attacks on the product (about 40 minutes), with its figures in the records
# make check   formatting, lint and types
# make gpu-check  check every kernel on the GPU of this machine (GPU_ARGS="--tensorrt DIR", GPU_PYTHON=python3)
# make gpu-kernels, make gpu-end-to-end  time kernels and models there
# make format  rewrite the sources in the project's format
# make clean   remove what the other targets made, the environment included
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= export,gguf,cpu,rtx,zoo,video,audio,text,tune,serve,polygraphy,dev
PYTEST_ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
GPU_ARGS ?=
GPU_PYTHON ?=
GPU_MODULE_gpu-check := trt_compress.tools.gpu.check
GPU_MODULE_gpu-kernels := trt_compress.tools.gpu.kernels
GPU_MODULE_gpu-end-to-end := trt_compress.tools.gpu.end_to_end

BIN := $(VENV)/bin
STAMP := $(VENV)/.trt-compress-installed
CPP_SOURCES := $(shell git ls-files '*.cu' '*.cuh' '*.cpp' '*.h' 2>/dev/null)

.DEFAULT_GOAL := test
.PHONY: install demo test attack check gpu-check gpu-kernels gpu-end-to-end format clean

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m trt_compress.tools.demo

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

attack: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/attack tests/export/test_cache_proofs.py --attack --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

check: $(STAMP)
	@echo "ruff format" && $(BIN)/ruff format --quiet --check .
	@echo "ruff check" && $(BIN)/ruff check --quiet .
	@echo "mypy" && $(BIN)/mypy
	@echo "pyright" && $(BIN)/pyright --pythonpath $(BIN)/python
	@echo "clang-format" && $(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

# Without GPU_PYTHON as every other target; with it that interpreter as it is, for a machine without a network.
gpu-check gpu-kernels gpu-end-to-end: $(if $(GPU_PYTHON),,$(STAMP))
	@PYTHONPATH=src:$$PYTHONPATH $(or $(GPU_PYTHON),$(BIN)/python) -m $(GPU_MODULE_$@) $(GPU_ARGS)

format: $(STAMP)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/clang-format -i $(CPP_SOURCES)

clean:
	rm -rf $(VENV) dist out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is already there is kept; a change of pyproject.toml or constraints.txt installs again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "trt-compress needs Python 3.10 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Pass PYTHON=/path/to/python3." >&2; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || { echo "Creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); } || \
	  { echo "python3 -m venv failed. On Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Installing trt-compress[$(EXTRAS)] into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
