# `make demo` and `make test` set up everything they need in .venv, once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint readme clean

demo: $(VENV)/.installed
	$(RUN) python/make_digits_zoo.py zoo
	$(VENV)/bin/mergekern metrics zoo --out zoo/metrics.parquet --sort-by task_vector_cosine_similarity

test: $(VENV)/.installed
	$(RUN) -m pytest

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Writes the metric table of the README anew from the catalogue.
readme: $(VENV)/.installed
	$(RUN) python/make_readme.py

$(VENV)/.installed: pyproject.toml setup.py requirements-dev.txt $(wildcard csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mergekern/*.so
