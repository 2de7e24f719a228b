# `make demo` and `make test` set up everything they need in .venv, once: the demo the package, the tests their tools too.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Compilers of kernels, of the versions that the machines with GPUs have.
TRITON ?= 3.6.0
NVRTC ?= 13.0.88
PTX := build/ptx-$(TRITON)

.PHONY: demo test quick test-processors fuzz ptx bench gpu-check sanitize lint readme docs dist clean

# A zoo, its metrics, and the best merge that 20 measurements find.
demo: $(VENV)/.installed
	$(RUN) python/make_digits_zoo.py zoo
	$(VENV)/bin/mergekern metrics zoo --calibration zoo/calibration --model-fn python/make_digits_zoo.py:build_model \
		--per-layer --summary --out zoo/metrics.parquet
	$(VENV)/bin/mergekern report zoo/metrics.parquet --title "20 tasks on handwritten digits" --out zoo/report.html
	$(VENV)/bin/mergekern best zoo --evaluate accuracy --data zoo/calibration --model-fn python/make_digits_zoo.py:build_model \
		--target normalized_accuracy --budget 20 --out demo

# A file of tests a process, one process a core.
test: $(VENV)/.tools
	$(RUN) -m compileall -q mergekern tests # processes that tests start need not, also where Python may write no bytecode
	$(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -p no:benchmark

# What catches most mistakes, in under a minute.
quick: lint
	$(RUN) -m pytest --numprocesses auto -p no:benchmark tests/test_architecture.py tests/test_golden.py tests/test_choices.py \
		tests/metrics tests/tables tests/kernels/test_gram.py tests/kernels/test_shared_codes.py tests/merging/test_golden.py \
		tests/merging/test_closed_forms.py tests/python/test_make_readme.py

# The same as other processors would run it: the libraries are told to choose their kernels as on older ones, or on AMD's
# (about 4 times as long as `make test`); OPTIONS="--sensitive" runs the tests of numbers alone.
test-processors: $(VENV)/.tools
	$(RUN) tests/processors.py $(OPTIONS)

# Hostile files before every command, and every command that writes killed 20 times (about 40 minutes; `make test` runs a
# part). INPUTS="--inputs 1000 --seed 7" for others.
fuzz: $(VENV)/.tools
	$(RUN) -m tests.fuzz $(INPUTS)
	MERGEKERN_KILLS=20 $(RUN) -m pytest -p no:benchmark tests/fuzz/test_killed.py

# Every kernel for GPUs as the compilers make it, executed on the processor (about 2 minutes): the tests of tests/ptx say
# what this sees.
# TRITON=3.9.0 for another compiler than that of the machines with GPUs.
ptx: $(VENV)/.tools $(PTX)/.installed
	PYTHONPATH=$(PTX) MERGEKERN_TEST_DEVICE=ptx $(RUN) -m pytest --numprocesses auto -p no:benchmark @tests/ptx/kernels.txt

# Correctness first, then every suite side by side (about 70 minutes, 40 of them running models); adds rows, and draws
# them.
bench: $(VENV)/.tools
	$(RUN) -m pytest tests/kernels tests/test_golden.py tests/test_oracle.py tests/functional
	$(RUN) -m pytest benchmarks --results benchmarks/results
	$(RUN) -m benchmarks.plots
	$(RUN) python/make_readme.py

# All of it on a GPU, with the machine's own Python and no network: PART=1, then PART=2, each under six minutes (without
# PART both). OUT=FOLDER takes rows, journal and table; OPTIONS="--only kernel/gram" selects cases.
gpu-check:
	$(if $(OUT),OUT="$(OUT)") $(PYTHON) benchmarks/device.py $(if $(PART),--part $(PART)) $(OPTIONS)

# The C++ kernels under the sanitizers of GCC (about 4 minutes). A build that is there already is left as it is.
sanitize: $(if $(wildcard $(RUN)),,$(VENV)/.tools)
	tests/kernels/sanitize.sh $(RUN)

lint: $(VENV)/.tools
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/vermin --target=3.10- --violations --quiet --no-tips --exclude long mergekern python setup.py

# Writes the generated tables of the README and of docs/ anew, from the catalogue and from the rows of benchmarks/results.
readme: $(VENV)/.tools
	$(RUN) python/make_readme.py

# The site of docs/, in build/docs/index.html. A broken link or reference fails.
docs: $(VENV)/.tools
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/docs

# The archives of a release, in dist/: built, checked, and tried in new environments, one of which finds no compiler.
dist: $(VENV)/.tools
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dist.txt
	$(RUN) python/make_dist.py dist

INSTALLED_FROM := pyproject.toml setup.py requirements-dev.txt $(wildcard csrc/cpu/*)

# The package, what its pages are made with, and the torch that is known to work: half of what the tests need.
$(VENV)/.installed: $(INSTALLED_FROM)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements-dev.txt)" -e '.[report]'
	touch $@

$(VENV)/.tools: $(INSTALLED_FROM)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(VENV)/.installed $@

$(PTX)/.installed:
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(PTX) triton==$(TRITON) nvidia-cuda-nvrtc==$(NVRTC)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info mergekern/*.so
