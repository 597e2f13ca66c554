PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help env demo test test-slow bench bench-loader bench-accelerator lint clean

help:
	@echo "make env    make .venv from requirements.txt (METRICS=1: with the weights of LPIPS and FVD, 115 MB;"
	@echo "            ACCELERATOR=cuda13 or tpu: with JAX for it)"
	@echo "make demo   train on the embedded real clips and show what was learned (runs/demo)"
	@echo "make test   run the fast tests"
	@echo "make test-slow  run the slow tests (kills, several processes, soak; two hours on two cores)"
	@echo "make bench  compare speed and memory with PyTorch (half an hour; BENCH=--quick: minutes)"
	@echo "make bench-loader  compare the loaders with PyTorch's (ten minutes; BENCH=--quick: two)"
	@echo "make bench-accelerator  time training steps on this machine's accelerator (minutes)"
	@echo "make lint   check the style, the formatting and the types"
	@echo "make clean  remove caches (never runs/ or data/)"

$(VENV)/.runtime: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Built with the pinned setuptools, which newer virtual environments do not come with.
$(VENV)/.metrics: requirements-metrics.txt $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517 -r $<
	@touch $@

ACCELERATORS := cuda13 tpu
$(ACCELERATORS:%=$(VENV)/.%): $(VENV)/.%: requirements-%.txt $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.runtime $(VENV)/.metrics
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.test
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

ifneq ($(filter-out $(ACCELERATORS),$(ACCELERATOR)),)
$(error ACCELERATOR is $(ACCELERATOR); choose one of $(ACCELERATORS), or leave it out for a CPU)
endif

env: $(VENV)/.runtime $(if $(METRICS),$(VENV)/.metrics) $(ACCELERATOR:%=$(VENV)/.%)

demo: env
	$(RUN) train.py --config=configs/quickstart.py --workdir=runs/demo
	$(RUN) evaluate.py --workdir=runs/demo --checkpoint=last
	@echo "Look at runs/demo/eval/star_jump.gif, per_frame_psnr.png, training_curves.png and table.md."
	$(RUN) export.py --workdir=runs/demo --checkpoint=last

test: $(VENV)/.test
	$(RUN) -m pytest -q -n auto --maxprocesses 8

test-slow: $(VENV)/.test
	$(RUN) -m pytest -q -m slow

bench: $(VENV)/.dev
	$(RUN) benchmarks/run.py $(BENCH)

bench-loader: $(VENV)/.dev
	$(RUN) benchmarks/loader.py $(BENCH)

bench-accelerator: env
	$(RUN) benchmarks/accelerator.py $(BENCH)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
