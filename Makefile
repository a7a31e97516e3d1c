# The commands of this project. Only Python 3.11 to 3.13 has to be there: the first call of a target sets up .venv.
#   make train ARGS="--data DIR"      make test ARGS="-k split"      make PYTHON=/path/to/python3.12 VENV=.venv-3.12 quick

PYTHON ?=
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder --max-worker-restart 0
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3)
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PIP_IS_NEW := import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 23)
WANTED := Python 3.11 to 3.13 with its venv module (on Debian and Ubuntu also the package python3-venv)

.DEFAULT_GOAL := help
.PHONY: help train serve test quick check docs lock clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1@/p' Makefile | column -t -s@ 2>/dev/null || sed -n 's/^\([a-z]*\):.*## /  make \1  /p' Makefile
	@echo '  Options are passed with ARGS="...", another Python with PYTHON=..., its folder with VENV=...'

train: $(VENV)/.installed  ## train, test and report on the default sample (ARGS="--data DIR": your own photos)
	@$(PY) -m jobs.train $(ARGS)

serve: $(VENV)/.installed  ## answer photos over HTTP with the newest run of runs/ (ARGS="--bundle RUN --port 8000")
	@$(PY) -m serving.__main__ $(ARGS)

test: check  ## all checks, then all tests (ARGS goes to pytest)
	$(PY) -m pytest $(PARALLEL) $(ARGS)

quick: check  ## all checks, then the tests that start no Ray and build no networks of full depth
	TF_NUM_INTRAOP_THREADS=1 $(PY) -m pytest -m "not ray and not networks" $(PARALLEL) $(ARGS)

check: $(VENV)/.audited  ## ruff and mypy; with changed versions also what is known against them
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: $(VENV)/.installed  ## docs/cli.md, made from the options
	$(PY) -m docs.cli

lock:  ## resolve constraints.txt for every supported Python (ARGS="--upgrade": the newest versions)
	@[ -x $(PY) ] || $(MAKE) $(VENV)/.installed
	$(PY) -m uv pip compile pyproject.toml -o constraints.txt --custom-compile-command 'make lock' --quiet $(ARGS)

clean:  ## remove .venv, caches and build output (runs/ stays)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Once for each constraints.txt; without a network nothing is known.
$(VENV)/.audited: $(VENV)/.installed
	@said=$$($(PY) -m pip_audit --no-deps --disable-pip --progress-spinner off --timeout 5 -r constraints.txt 2>&1); \
	case "$$said" in \
	  *"Found "*"known vulnerabilit"*) echo "$$said" >&2; exit 1 ;; \
	  *"could not be audited"*|*Error*) echo 'Advisories on the pinned versions could not be had: not checked, or not all.' ;; \
	esac; \
	touch $@

# The stamp is written last, so an interrupted install is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@rm -f $@; \
	if ! $(PY) -c '$(FITS)' >/dev/null 2>&1 || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(FITS)' </dev/null >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'error: found no $(WANTED); tried: $(subst ",,$(CANDIDATES)). Install one or name it: make PYTHON=/path/to/python' >&2; \
	    exit 1; \
	  fi; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($(PY) --version): downloads about 1 GB, takes some minutes the first time."; \
	$(PY) -c '$(PIP_IS_NEW)' || $(PY) -m pip install -q --upgrade pip || exit 1; \
	$(PY) -m pip install -q --no-input --disable-pip-version-check -c constraints.txt -e '.[dev]' && touch $@
