# `make demo` and `make test` set up .venv first; `make clean` takes everything away again.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet

# Where Python is told not to keep bytecode, each of the processes that are started here would
# compile torch and Detectron2 again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo audit-demo test lint check-gpu clean install-torch install-others

demo: .venv/ready
	.venv/bin/python tools/demo.py

audit-demo: .venv/ready
	.venv/bin/python tools/audit_demo.py

# In two processes; the tests of a file in one of them, and the files in their order, which begins with
# long ones. Coverage makes Python code take twice the time, so it is measured on these tests alone.
PYTEST := .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder
OF_WEIGHTING := tests/weighting tests/torchvision tests/test_other_detectors.py \
    tests/modeling/test_strategies.py tests/engine/test_optimizer.py

test: lint
	$(PYTEST) --cov=swn_d2/weighting --cov-fail-under=98 $(OF_WEIGHTING)
	$(PYTEST) $(OF_WEIGHTING:%=--ignore=%)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Downloads nothing: where there is no .venv, $(PYTHON) must have what is needed.
check-gpu:
	$(if $(wildcard .venv/ready),.venv/bin/python,$(PYTHON)) tools/check_gpu.py $(ARGS)

# requirements.lock names every package, so pip need not resolve (--no-deps) and a source package
# is built with the lock's own setuptools (--no-build-isolation). Python compiles what it imports.
LOCKED := $(PIP) install --no-compile --no-deps --no-build-isolation
OF_TORCH := '^(torch|triton|nvidia|cuda)'

install-torch:
	$(LOCKED) $$(grep -E $(OF_TORCH) requirements.lock)

install-others:
	$(LOCKED) $$(grep '^setuptools==' requirements.lock)
	$(LOCKED) $$(grep -Ev $(OF_TORCH) requirements.lock | grep -v '^#')

# torch, with what it needs of a GPU, is most of it, and pip unpacks one package after another: so
# there are two of them.
.venv/ready: requirements.lock tools/install_detectron2.py tools/detectron2_wheel/_C.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	    echo "error: requirements.lock is for Python 3.11 and $(PYTHON) is not that;" \
	        "name one with 'make PYTHON=/path/to/python3.11'." >&2; exit 1; }
	@echo 'Setting up .venv: about 3 GB of packages to fetch, 6 GB on disk, 9 GB meanwhile.'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory --jobs=2 install-torch install-others
	.venv/bin/python tools/install_detectron2.py
	$(PIP) install --no-deps --no-build-isolation -e .
	$(PIP) check
	touch $@

# Trainings under output/ stay; only the demos' go.
clean:
	rm -rf .venv output/demo output/audit_demo datasets/digit_scenes build *.egg-info .pytest_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
