# The environment is .venv; every target makes what it needs.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
WEIGHTS ?= fp32
PORT ?= 8001
REPOSITORY := model_repository
GUARDS := $(REPOSITORY)/gen_guard/1/manifest.json $(REPOSITORY)/stream_guard/1/manifest.json

.PHONY: demo serve test test-large check perf clean

demo: $(GUARDS)  # export the demo guard, serve it, judge three conversations and a stream, stop
	@$(BIN)/python demo/run.py

serve: $(GUARDS)  # leave the server running on 127.0.0.1:8001
	@$(BIN)/qwen3guard serve --model-repository $(REPOSITORY) --grpc-port $(PORT)

test: .venv/dev.done
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-large: .venv/dev.done  # the true 0.6B shape, random weights: minutes and gigabytes
	@$(BIN)/python -m pytest -m large -s

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m qwen3guard_export.repository --check
	$(BIN)/python client/generate_sync.py --check

perf: .venv/perf.done  # the table of docs/performance.md, beside its peers; best on a machine with 24 GB
	@$(BIN)/python perf/table.py
	@$(BIN)/python perf/report.py
	@$(BIN)/python perf/capacity.py

clean:
	rm -rf .venv build *.egg-info .*_cache $(GUARDS)

# A manifest newer than the demo's weights stays, so that a real guard exported here is served as well.
$(REPOSITORY)/%_guard/1/manifest.json: demo/%/model.safetensors | .venv/serve.done
	@$(BIN)/qwen3guard export demo/$* --output $(REPOSITORY) --weights $(WEIGHTS)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv

# What serves is installed by hash; SECURITY.md says how the lock is renewed.
.venv/locked.done: requirements/serve.lock | .venv/bin/python
	@echo "installing the server and the export (about a minute the first time) ..."
	@$(BIN)/pip install --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

.venv/serve.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/perf.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --editable '.[perf]'
	@touch $@ .venv/serve.done

.venv/dev.done: pyproject.toml .venv/locked.done
	@echo "installing the tests' oracle: torch, transformers, optimum (some minutes the first time) ..."
	@$(BIN)/pip install --disable-pip-version-check --quiet --upgrade 'pip>=26,<27'  # resolves twice as fast as 3.11's own
	@$(BIN)/pip install --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $@ .venv/serve.done
