PYTHON ?= $(shell python3.11 -c '' 2> /dev/null && echo python3.11 || echo python3)
SERVE := .venv/serve
TEST := .venv/test

.PHONY: help serve test test-fast check docs lock screenshots chaos

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)/installed ## Serve the shipped models on 127.0.0.1:8000 (HEED_PORT=9000 make serve: another port)
	@exec $(SERVE)/bin/heed serve

test: $(TEST)/installed ## Run every test that needs no GPU
	$(TEST)/bin/pytest $(ARGS)

test-fast: $(TEST)/installed ## Run the tests of the inner loop, in about a minute
	$(TEST)/bin/pytest -m "not slow and not system and not browser and not shipped" $(ARGS)

chaos: $(TEST)/installed ## Kill and stop parts of a running service and check what is lost (five minutes)
	$(TEST)/bin/pytest tests/system -k "recovery or lost_processes or haproxy_guard or stopping" $(ARGS)

check: $(TEST)/installed ## Check lint, formatting, types and spelling
	$(TEST)/bin/ruff check
	$(TEST)/bin/ruff format --check
	$(TEST)/bin/mypy
	git ls-files -z | xargs -0 $(TEST)/bin/codespell

docs: $(TEST)/installed ## Write the pages of docs/ that the code generates
	$(TEST)/bin/python -m tests.docs

screenshots: $(TEST)/installed ## Take the pictures of the console (needs Chromium and fonts for Chinese)
	SCREENSHOTS=$(CURDIR)/service/web/screenshots $(TEST)/bin/python -m pytest -q tests/browser/test_screenshots.py

lock: .venv/lock/installed ## Fit requirements/*.txt to pyproject.toml (ARGS=--upgrade: to the newest versions it allows)
	$(LOCK) --extra cpu --extra train --extra test --output-file requirements/test.txt
	@sed --in-place --regexp-extended '/^(cuda|nvidia|triton)/d' requirements/test.txt
	$(LOCK) --constraints requirements/test.txt --extra cpu --output-file requirements/serve.txt
	$(LOCK) --constraints requirements/test.txt --extra gpu --extra train --extra test --output-file requirements/gpu.txt

include requirements/environments.mk tests/bench/bench.mk
