# make demo        set up, then the whole line from the shipped teacher to demo/report.html; ten minutes on 2 cores
# make test        set up, lint, type-check, fast tests
# make test-slow   shipped models, full-size conversions, long runs
# make quality     every shipped model's FID, KID, CLIP score, ...: runs/cards/table.md; about five minutes of a core for each
# make gate        the default bundle against the committed counters
# make gate-times  its times in turns with the revision before (BASE=HEAD~1), two minutes at most; only a regression fails
# make system-deps what needs root (fonts); without it the tests that use it skip
SHELL := /bin/bash
VENV  ?= .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
SYSTEM_PACKAGES := fonts-noto-color-emoji unicode-data

# The first Python of 3.11 or later that runs; override with `make PYTHON=/path/to/python3.12`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

CHECKPOINTS := $(patsubst %/model_index.json,%,$(wildcard assets/emoji-64/*/model_index.json))
BUNDLES := $(patsubst %/manifest.json,%,$(wildcard kdc_edge/data/*/manifest.json))

.PHONY: install demo test test-slow quality gate gate-times lint system-deps clean
.DEFAULT_GOAL := test

install: $(STAMP)

# torch goes in first and by itself, so that an index or wheel already chosen for it (CPU, CUDA) is kept.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later found; install one, or: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 3; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[train,onnx,ort,openvino,tensorrt-rtx,bench,quality,dev]'
	@touch $@

# The first distillation is short and honest: its loss curve is shown. The pictures are by the shipped four-step student, which
# the same command trained for longer, and then `train.fewstep`.
DEMO_PROMPTS := "red apple" "rocket" "flag: Norway" "thumbs up: medium skin tone" "sunflower" "cat face" \
	"soccer ball" "snowflake" "pizza" "red heart" "smiling face with sunglasses" "sailboat"

demo: $(STAMP)
	@mkdir -p demo && rm -rf demo/run
	$(BIN)/python -m train.distill --student kdc-small --steps 120 --run-dir demo/run -o demo/distilled --cache-dir demo/cache \
		--log demo/log.md --force
	$(BIN)/python -m convert.onnx --model assets/emoji-64/teacher -o demo/teacher --force
	$(BIN)/python -m convert.onnx --model assets/emoji-64/fewstep -o demo/fewstep --force
	$(BIN)/python -m bench compare demo/teacher demo/fewstep -o demo/timings.json
	for model in teacher fewstep; do \
		$(BIN)/kdc-edge generate $(DEMO_PROMPTS) --bundle demo/$$model --sheet -o demo/$$model.png || exit; \
	done
	$(BIN)/python -m bench report --bundles demo/teacher demo/fewstep --pictures demo/teacher.png demo/fewstep.png \
		--timings demo/timings.json --training demo/distilled -o demo/report.html

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

quality: $(STAMP)
	@rm -rf runs/cards && mkdir -p runs/cards
	for model in $(CHECKPOINTS); do \
		$(BIN)/python -m train.evaluate --model $$model -o runs/cards/$$(basename $$model).json || exit; \
	done
	for bundle in $(BUNDLES); do \
		$(BIN)/python -m bench quality $$bundle -o runs/cards/bundle-$$(basename $$bundle).json || exit; \
	done
	$(BIN)/python -m bench cards runs/cards/*.json --across sampler steps guidance -o runs/cards/table.md

BUNDLE := kdc_edge/data/emoji-64
BASE   ?= HEAD~1

gate: $(STAMP)
	$(BIN)/python -m bench gate $(BUNDLE) --base bench/baseline.json

gate-times: $(STAMP)
	$(BIN)/python -m bench gate $(BUNDLE) --base $(BASE) --allow-inconclusive

system-deps:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SYSTEM_PACKAGES); \
	else \
		echo "system-deps: needs root and apt-get; skipped: $(SYSTEM_PACKAGES)"; \
	fi

clean:
	rm -rf build dist demo runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
