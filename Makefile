# The environment is .venv; every target makes what it needs.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
WEIGHTS ?= fp32
PORT ?= 8001
REPOSITORY := model_repository
GUARDS := $(REPOSITORY)/gen_guard/1/manifest.json $(REPOSITORY)/stream_guard/1/manifest.json

# PyPI's torch for Linux is a CUDA build of about 3 GB; the tests need the CPU build, of 190 MB.
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo serve test test-unit test-large trials check release perf clean say-dev

demo: $(GUARDS)  # export the demo guard, serve it, judge three conversations and a stream, stop
	@$(BIN)/python demo/run.py

serve: $(GUARDS)  # leave the server running on 127.0.0.1:8001
	@$(BIN)/qwen3guard serve --model-repository $(REPOSITORY) --grpc-port $(PORT)

test: say-dev .venv/dev.done .venv/gpu.done
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=25

test-unit: say-dev .venv/dev.done  # one module or two at a time: no server, no torch, one to two minutes
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit

test-large: say-dev .venv/dev.done  # the true 0.6B shape, random weights: minutes and gigabytes
	@$(BIN)/python -m pytest -m large -s

trials: say-dev .venv/dev.done $(GUARDS)  # what `make test` does in short, at full length: the better part of an hour
	@TRIALS=full $(BIN)/python -m pytest -m trial -s
	@$(BIN)/python trials/faults.py $(REPOSITORY) --times 20
	@$(BIN)/python trials/flood.py $(REPOSITORY)
	@$(BIN)/python trials/fleet.py

check: say-dev .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.14 contract client
	$(BIN)/python -m qwen3guard_export.repository --check
	$(BIN)/python client/generate_sync.py --check
	$(BIN)/python release/field_tables.py --check
	$(BIN)/python release/command_page.py --check
	$(BIN)/python release/architecture.py --check
	$(BIN)/python perf/quoted.py --check
	$(BIN)/python perf/capacity.py --check
	$(BIN)/python perf/report.py --check

release: .venv/release.done  # build the wheel of HEAD into dist/ and check it; nothing is uploaded
	@$(BIN)/python release/build.py

perf: .venv/perf.done  # the table of docs/performance.md, beside its peers; best on a machine with 24 GB
	@$(BIN)/python perf/table.py
	@$(BIN)/python perf/report.py
	@$(BIN)/python perf/capacity.py
	@$(BIN)/python perf/quoted.py

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
	@echo "installing the server and the export (150 MB, about a minute the first time) ..."
	@$(BIN)/pip install --disable-pip-version-check --quiet --require-hashes --requirement $<
	@touch $@

.venv/serve.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

.venv/perf.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --editable '.[perf]'
	@touch $@ .venv/serve.done

.venv/release.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --editable '.[release]'
	@touch $@ .venv/serve.done

# Beside the environment, because onnxruntime and onnxruntime-gpu are one folder; tests/gpu loads it from here. NVIDIA's
# packages are here for their headers.
.venv/gpu.done: tests/gpu/packages.txt | .venv/bin/python
	@echo "installing onnxruntime-gpu for tests/gpu (250 MB) ..."
	@rm -rf .venv/gpu
	@$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --target .venv/gpu --requirement $<
	@rm -rf .venv/gpu/nvidia/cu13/lib
	@touch $@

say-dev:
	@test .venv/dev.done -nt pyproject.toml || echo "making .venv for the tests, some minutes the first time: downloads" \
		"150 MB to serve and export, 190 MB of PyTorch (its CPU build), 560 MB of other tools; takes 3.1 GB on disk"

.venv/dev.done: pyproject.toml .venv/locked.done
	@$(BIN)/pip install --disable-pip-version-check --quiet --upgrade 'pip>=26,<27'  # resolves twice as fast as 3.11's own
	@$(BIN)/pip install --disable-pip-version-check --no-deps --retries 0 --timeout 20 --index-url $(TORCH_INDEX) \
		'$(TORCH)' 2> /dev/null || \
		echo "no CPU build of $(TORCH) at $(TORCH_INDEX): taking pip's default, on Linux a CUDA build of about 3 GB"
	@$(BIN)/pip install --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $@ .venv/serve.done
