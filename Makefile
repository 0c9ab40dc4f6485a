# make demo    the main job on a machine without a GPU: SGLang serves a few-shot workload
# make test    the tests that need no GPU
# make lint | wheel | venv | clean

PYTHON ?= python3
VENV ?= .venv
MODEL ?= .models/tiny-llama
PYTEST_ARGS ?=
# test processes, each with one thread: most tests that take long wait for one that computes
JOBS ?= 3

BIN := $(VENV)/bin
READY := $(VENV)/.codec-ready
ENV_FILES := requirements-cpu.txt requirements-cpu-nodeps.txt pyproject.toml \
	scripts/environment/setup_cpu_env.sh $(wildcard scripts/environment/cpu_env/*)

.PHONY: demo test venv lint wheel clean

venv: $(READY)

$(READY): $(ENV_FILES)
	@PYTHON=$(PYTHON) scripts/environment/setup_cpu_env.sh $(VENV)
	@touch $@

$(MODEL)/config.json: scripts/serve/make_tiny_model.py | $(READY)
	@$(BIN)/python scripts/serve/make_tiny_model.py $(MODEL)

ifeq ($(if $(CPU),,$(shell nvidia-smi >/dev/null 2>&1 && echo gpu)),gpu)
demo:
	@echo "This machine has a GPU: use the SGLang that runs on it (README, 'GPU quick start'):"
	@echo "    pip install --no-deps --no-build-isolation -e ."
	@echo "    python scripts/serve/few_shot.py --model MODEL --backend codec,flashinfer"
	@echo "'make demo CPU=1' runs the CPU demo all the same."
else
demo: $(READY) $(MODEL)/config.json
	@$(BIN)/python scripts/serve/demo.py --model $(MODEL)
endif

# a failing make exits with 2 whatever pytest said: .ci/run reads pytest's own status from the file
test: $(READY)
	@scripts/environment/install_sglang_overlays.sh $(BIN)/python
	@rm -f $(VENV)/.pytest-status
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		$(PYTEST_ARGS); \
		status=$$?; echo $$status >$(VENV)/.pytest-status; exit $$status

lint: $(READY)
	$(BIN)/ruff check sglang_codec kernels patches scripts tests

wheel: $(READY)
	$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation -w dist .

clean:
	rm -rf $(VENV) .sglang build dist out .models *.egg-info .pytest_cache .hypothesis .ruff_cache
