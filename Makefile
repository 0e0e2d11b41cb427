# Environments, each made when it is missing and renewed when its list changes: serving has no torch.
PYTHON ?= python3
SERVE := .venv/serve
TEST := .venv/test
PEERS := .venv/bench
RECOMMENDERS := .venv/bench-recommend
# Where there is no GPU, bench-gpu has only that to say, and needs no CUDA for it.
GPU := $(if $(shell command -v nvidia-smi),.venv/gpu,$(TEST))
PIP := bin/pip --disable-pip-version-check --quiet install

.PHONY: help serve test check screenshots bench-footprint bench-explain bench-noise bench-intents bench-recommend bench-recommend-quality bench-graphs bench-serve bench-ablation bench-gpu bench-serve-gpu wrk

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)/installed ## Serve the shipped bundle on 127.0.0.1:8000 (HEED_PORT=9000 make serve: another port)
	@exec $(SERVE)/bin/heed serve

test: $(TEST)/installed ## Run every test that needs no GPU
	$(TEST)/bin/pytest

check: $(TEST)/installed ## Lint, formatting and types
	$(TEST)/bin/ruff check
	$(TEST)/bin/ruff format --check
	$(TEST)/bin/mypy

screenshots: $(TEST)/installed ## Take the README's pictures of the console anew (needs Chromium and fonts for Chinese)
	SCREENSHOTS=$(CURDIR)/service/web/screenshots $(TEST)/bin/python -m pytest -q tests/browser/test_screenshots.py

bench-footprint: $(TEST)/installed ## Measure start-up, memory and latency of the shipped service
	$(TEST)/bin/python -m tests.bench.footprint

bench-explain: $(TEST)/installed ## Measure what explaining costs plain requests, through HAProxy (ARGS=--help: options; seven minutes)
	$(TEST)/bin/python -m tests.bench.explaining $(ARGS)

bench-noise: $(TEST)/installed ## Measure what the handling of noisy labels gains (BASE=encoder DATA=data sets; an hour)
	$(TEST)/bin/python -m tests.bench.noise --base $(BASE) --data $(DATA)

bench-intents: $(TEST)/installed ## Measure intents never seen, and simpler ways beside ours (BASE=encoder DATA=intent data sets; an hour; ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.intents --base $(BASE) --data $(DATA) $(ARGS)

bench-recommend: wrk $(TEST)/installed ## Measure recommendation beside the same scoring alone (ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.recommend $(ARGS)

bench-graphs: $(TEST)/installed ## Compare the ways to store and multiply trained weights (RUN=training folder DATA=data sets)
	$(TEST)/bin/python -m tests.bench.graphs --run $(RUN) --data $(DATA)

bench-serve: wrk $(TEST)/installed $(PEERS)/installed $(PEERS)-older/installed ## Measure Heed beside its peers (DATA=folder of data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.serve $(if $(DATA),--data $(DATA)) $(ARGS)

bench-ablation: wrk $(TEST)/installed ## Measure what each lever of speed is worth (DATA=folder of data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.ablation $(if $(DATA),--data $(DATA)) $(ARGS)

bench-gpu: $(GPU)/installed ## Measure the engine on this machine's GPU (DATA=folder of data sets, ARGS=--help: options)
	$(GPU)/bin/python -m tests.bench.gpu $(if $(DATA),--data $(DATA)) $(ARGS)

bench-serve-gpu: wrk $(GPU)/installed ## Measure Heed as it serves on this machine's GPU (DATA=folder of data sets, ARGS=--help: options)
	$(GPU)/bin/python -m tests.bench.serve --contenders heed-gpu --workloads short-1 short-64 short-512 mixed-64 batch-32-64 --data $(DATA) $(ARGS)

bench-recommend-quality: $(TEST)/installed $(RECOMMENDERS)/installed ## Measure recommendations, and other methods' (BASE=encoder DATA=recommend data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.recommend_quality --base $(BASE) --data $(DATA) $(ARGS)

# Before the environments: installing them takes minutes.
wrk:
	@command -v wrk > /dev/null || { echo "wrk, the load generator, is not installed: apt-get install wrk" >&2; exit 1; }

$(SERVE)/installed: pyproject.toml
	@echo "Installing what serving needs into $(SERVE) ..."
	@$(PYTHON) -m venv $(SERVE)
	@$(SERVE)/$(PIP) --editable '.[cpu]'
	@touch $@

# torch on its own and first: the exact version decides which build of it, and the rest must not choose another.
$(TEST)/installed: pyproject.toml
	@echo "Installing what testing and training need into $(TEST) ..."
	@$(PYTHON) -m venv $(TEST)
	@$(TEST)/$(PIP) torch==2.13.0
	@$(TEST)/$(PIP) --editable '.[cpu,train,test]'
	@touch $@

.venv/gpu/installed: pyproject.toml
	@echo "Installing what measuring a GPU needs into .venv/gpu ..."
	@$(PYTHON) -m venv .venv/gpu
	@.venv/gpu/$(PIP) torch==2.13.0
	@.venv/gpu/$(PIP) --editable '.[gpu,train,test]'
	@touch $@

$(PEERS)/installed: tests/bench/serve/requirements.txt
	@echo "Installing the peers of bench-serve into $(PEERS) ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/$(PIP) torch==2.13.0
	@$(PEERS)/$(PIP) --requirement $<
	@touch $@

$(PEERS)-older/installed: tests/bench/serve/requirements-older.txt
	@echo "Installing the peers that need older libraries into $(PEERS)-older ..."
	@$(PYTHON) -m venv $(PEERS)-older
	@$(PEERS)-older/$(PIP) --requirement $<
	@touch $@

# RecBole for the MovieLens data that is in it, so without what else it needs.
$(RECOMMENDERS)/installed: tests/bench/recommend_quality/requirements.txt
	@echo "Installing the other methods of bench-recommend-quality into $(RECOMMENDERS) ..."
	@$(PYTHON) -m venv $(RECOMMENDERS)
	@$(RECOMMENDERS)/$(PIP) torch==2.13.0
	@$(RECOMMENDERS)/$(PIP) --requirement $<
	@$(RECOMMENDERS)/$(PIP) --no-deps recbole==1.2.1
	@touch $@
