# Environments in .venv: each is made when it is missing, and renewed when its list changes. Serving has no torch.
PIP = $(@D)/bin/pip --disable-pip-version-check --quiet install

# Here torch==2.13.0 means any build. A CUDA build pins its libraries, so only gpu.txt lists them: for ONNX Runtime.
LOCK = .venv/lock/bin/uv pip compile pyproject.toml --no-config --python .venv/lock/bin/python --python-platform linux \
	--quiet --no-annotate --custom-compile-command 'make lock' $(ARGS)

# $(call venv,what) makes the environment that the target lies in.
define venv
@$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null || { \
	echo "Heed needs Python 3.11 with venv, and $(PYTHON) is $$($(PYTHON) --version 2> /dev/null || echo missing). Install it" \
	"(Debian: python3.11-venv) and run: PYTHON=/path/to/python3.11 make $(MAKECMDGOALS)" >&2; exit 1; }
@echo "Installing $(1) into $(@D) ..."
@$(PYTHON) -m venv $(@D)
endef

$(SERVE)/installed: pyproject.toml requirements/serve.txt
	$(call venv,what serving needs)
	@$(PIP) --constraint requirements/serve.txt --editable '.[cpu]'
	@touch $@

# torch on its own and first: the exact version decides which build of it, and the rest must not choose another.
$(TEST)/installed: pyproject.toml requirements/test.txt
	$(call venv,what testing and training need)
	@$(PIP) --constraint requirements/test.txt torch==2.13.0
	@$(PIP) --constraint requirements/test.txt --editable '.[cpu,train,test]'
	@touch $@

.venv/lock/installed: Makefile
	$(call venv,what make lock needs)
	@$(PIP) uv==0.13.9
	@touch $@
