# make demo        set up, then the whole line from the shipped teacher to demo/report.html; ten minutes on 2 cores
# make demo-full   and what continual learning keeps: demo/comparison/comparison.html; five minutes more
# make test        set up, lint, type-check, fast tests
# make test-slow   shipped models, full-size conversions, long runs
# make quality     every shipped model's FID, KID, CLIP score, ...: runs/cards/table.md; about five minutes of a core for each
# make gate        the default bundle against the committed counters
# make gate-times  its times in turns with the revision before (BASE=HEAD~1), two minutes at most; only a regression fails
# make web         serve the web app over the default bundle (or BUNDLE=folder); open the address that it prints
# make system-deps what needs root (a browser, fonts, JUnit, C++ libraries); without it the tests that use it skip
SHELL := /bin/bash
VENV  ?= .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
SYSTEM_PACKAGES := chromium fonts-noto-color-emoji unicode-data junit4 g++ nlohmann-json3-dev libutf8proc-dev
NEWER_PACKAGES := libonnxruntime-dev  # Debian 13's; with what it needs 70 MB on disk. The other C++ libraries are 2 MB

# The first Python of 3.11 or later that runs; override with `make PYTHON=/path/to/python3.12`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# What ships, in the order of the line: checkpoints under assets/emoji-64, and the bundle made of the last.
MODELS := teacher student fewstep
BUNDLE := kdc_edge/data/emoji-64

# What the web app is made of, and what the apps' tests run with (a Kotlin compiler); without npm those tests skip.
NPM := apps/node_modules/.package-lock.json

.PHONY: install demo demo-full test test-slow quality gate gate-times lint web system-deps clean
.DEFAULT_GOAL := test

install: $(STAMP)

# torch goes in first and by itself, so that an index or wheel already chosen for it (CPU, CUDA) is kept.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later found; install one, or: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 3; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[train,onnx,coreml,ort,openvino,tensorrt-rtx,bench,quality,dev]'
	@touch $@

# The first distillation is short and honest: its loss curve is shown. The pictures are by the shipped four-step student, which
# the same command trained for longer, and then `train.fewstep`. Judging takes its time: it is done for the reference and for
# what ships, the page says "not measured" of the third.
DEMO_PROMPTS := "red apple" "rocket" "flag: Norway" "thumbs up: medium skin tone" "sunflower" "cat face" \
	"soccer ball" "snowflake" "pizza" "red heart" "smiling face with sunglasses" "sailboat"

demo: $(STAMP)
	@mkdir -p demo && rm -rf demo/run demo/runs demo/cards demo/comparison
	$(BIN)/python -m train.distill --student kdc-small --steps 80 --run-dir demo/run -o demo/distilled --cache-dir demo/cache \
		--log demo/log.md --force
	$(BIN)/python -m convert.onnx --model assets/emoji-64/teacher -o demo/teacher --force
	$(BIN)/python -m convert.onnx --model assets/emoji-64/fewstep -o demo/fewstep --force
	$(BIN)/python -m bench run demo/teacher demo/fewstep $(BUNDLE) --interleave --threads 1 --samples 15 -o demo/runs
	$(BIN)/python -m bench history demo/runs --database demo/history.sqlite
	for bundle in demo/teacher $(BUNDLE); do \
		$(BIN)/python -m bench quality $$bundle --prompts trained --count 48 --metrics retrieval --run-dir demo/quality \
			-o demo/cards/$$(basename $$bundle).json || exit; \
	done
	$(BIN)/python -m bench report demo/teacher demo/fewstep $(BUNDLE) demo/runs --cards demo/cards/*.json --history demo/history.sqlite \
		--prompts $(DEMO_PROMPTS) --device iphone-14 galaxy-s25 jetson-orin-nano raspberry-pi-5 --training demo/distilled \
		-o demo/report.html --force

# A dozen fruits, then a dozen animals, learned by a student that knew smileys: with nothing kept, and with 10 KB.
demo-full: demo
	$(BIN)/python -m train.comparison -o demo/comparison --base assets/emoji-64/continual/base.toml --base-steps 250 \
		--tasks assets/emoji-64/continual/tasks.toml --steps 200 --batch-size 16 --warmup 20 --methods naive replay --no-scratch \
		--replay-memory 10KB --pool 24 --prompts 12 --cache-dir demo/cache

$(NPM): apps/package-lock.json
	@command -v npm >/dev/null || { echo "make: no npm found; install Node.js 20 or later" >&2; exit 3; }
	npm ci --prefix apps --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

web: $(STAMP) $(NPM)
	$(BIN)/python -m apps.web --bundle $(BUNDLE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(if $(shell command -v npm),$(NPM))
	$(BIN)/python -m pytest -n 2 --dist loadfile

# optimum has an environment of its own: it cannot share one with transformers 5.
.venv-optimum/.installed: pyproject.toml constraints-optimum.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints-optimum.txt torch -e '.[optimum]'
	@touch $@

test-slow: $(STAMP) .venv-optimum/.installed
	$(BIN)/python -m pytest -m slow

quality: $(STAMP)
	@rm -rf runs/cards && mkdir -p runs/cards
	for model in $(MODELS); do \
		$(BIN)/python -m train.evaluate --model assets/emoji-64/$$model -o runs/cards/$$model.json || exit; \
	done
	$(BIN)/python -m bench quality $(BUNDLE) --against assets/emoji-64/fewstep -o runs/cards/bundle.json
	$(BIN)/python -m bench cards $(MODELS:%=runs/cards/%.json) runs/cards/bundle.json --across sampler steps guidance -o runs/cards/table.md

BASE ?= HEAD~1

gate: $(STAMP)
	$(BIN)/python -m bench gate $(BUNDLE) --base bench/baseline.json

gate-times: $(STAMP)
	$(BIN)/python -m bench gate $(BUNDLE) --base $(BASE) --allow-inconclusive

system-deps:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SYSTEM_PACKAGES) \
			$$(for p in $(NEWER_PACKAGES); do apt-cache pkgnames | grep -xF $$p || echo "system-deps: this system has no $$p" >&2; done); \
	else \
		echo "system-deps: needs root and apt-get; skipped: $(SYSTEM_PACKAGES)"; \
	fi

clean:
	rm -rf build dist demo runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
