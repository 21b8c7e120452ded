# The goals of rlhfd. `make` or `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
CARGO ?= cargo
PYTHON ?= python3
PROGRAMS ?= target/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
CARGO_DEB_VERSION := 3.8.0
CARGO_DEB ?= target/tools/bin/cargo-deb
# The part of the workspace that links no libtorch.
LIGHT := --workspace --exclude rlhfd-worker-torch

.PHONY: help setup build man install uninstall deb test-systemd demo study bench bench-control torture torture-plants crash crash-mutants fuzz soak test check planes parity tiny bless golden doc clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## libtorch into ./libtorch (CPU, or CUDA where a GPU is found or CUDA=1; SETUP=--cpu forces CPU)
	@$(PYTHON) scripts/setup $(if $(filter 1,$(CUDA)),--cuda) $(SETUP)

build: setup ## the release binaries, into target/release
	$(CARGO) build --release --locked
	@$(MAKE) --no-print-directory man

man: ## man pages and shell completions of what was built, into target/pages (PROGRAMS=target/release)
	@rm -rf target/pages
	@for program in rlhfd rlhfctl rlhfd-worker; do $(PROGRAMS)/$$program --write-pages target/pages; done

install: ## the system service (root; or PREFIX=~/.local for one of your own), from what `make build` made
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install

deb: build $(CARGO_DEB) ## the Debian package, into target/deb (without libtorch)
	@PROGRAMS=$(PROGRAMS) CARGO_DEB=$(CARGO_DEB) scripts/package

test-systemd: deb ## the package against a real systemd in a container (root): install, crash, upgrade, remove
	@PROGRAMS=$(PROGRAMS) CARGO_DEB=$(CARGO_DEB) scripts/package --revision 2 --fast
	@$(PYTHON) scripts/test-systemd target/deb/rlhfd_$(VERSION)-1_*.deb target/deb/rlhfd_$(VERSION)-2_*.deb

$(CARGO_DEB): Makefile
	$(CARGO) install cargo-deb --locked --version $(CARGO_DEB_VERSION) --root target/tools
	@touch $@

uninstall: ## takes that away again; configuration and state stay
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install --remove

demo: build ## two online iterations on SmolLM2-135M-Instruct, from nothing to the history by SQL
	@$(PYTHON) scripts/demo-model
	@scripts/demo

study: build ## does online beat offline? study/study.toml, five seeds, under 45 minutes on two cores
	@target/release/rlhfd-study

bench: build ## how fast, against the machine's limit and (PEER=1) transformers + TRL, into target/bench.json
	@$(PYTHON) scripts/demo-model
	@$(if $(PEER),$(PYTHON) scripts/parity-env)
	@target/release/rlhfd-worker bench $(if $(PEER),--peer .parity/bin/python) $(BENCH)

bench-control: ## how fast the control plane is, into target/bench-control.json (some 12 GB in TMPDIR for a while)
	$(CARGO) build --release --locked -p rlhfd -p rlhfctl -p rlhfd-tests
	@target/release/bench-control $(BENCH)

torture: setup ## broken on purpose N times (SEED=…, ROUND=… of it alone): every round ends as an undisturbed one
	$(CARGO) build --workspace --locked
	@TORTURE_FAULTS=$(or $(N),100) TORTURE_SEED=$(or $(SEED),1) TORTURE_ROUND=$(ROUND) RLHFD_REQUIRE_TORCH=1 \
		$(CARGO) test --locked -p rlhfd-tests --test torture -- --nocapture

torture-plants: setup ## plants five bugs, one by one, for the torture to find within N faults (200; SEED=…)
	@scripts/torture-plants $(or $(N),200) $(or $(SEED),1)

crash: setup ## power cuts at N instants of a run (SEED=…): each state opens, loses nothing and goes on
	$(CARGO) build --workspace --locked
	@CRASH_STATES=$(or $(N),1000) CRASH_SEED=$(or $(SEED),1) RLHFD_REQUIRE_TORCH=1 \
		$(CARGO) test --locked -p rlhfd-tests --test crash -- --nocapture

crash-mutants: setup ## each sync taken out in turn: something is lost (N=… states a sync, SEED=…)
	$(CARGO) build --workspace --locked
	@CRASH_MUTANTS=1 CRASH_STATES=$(or $(N),200) CRASH_SEED=$(or $(SEED),1) RLHFD_REQUIRE_TORCH=1 \
		$(CARGO) test --locked -p rlhfd-tests --test crash each_sync -- --nocapture

fuzz: ## N malformed requests by CLIENTS clients at once, while iterations run (SEED=…)
	$(CARGO) build --release --locked -p rlhfd -p rlhfctl -p rlhfd-tests
	@FUZZ_REQUESTS=$(or $(N),100000) FUZZ_CLIENTS=$(or $(CLIENTS),200) FUZZ_SEED=$(or $(SEED),1) \
		$(CARGO) test --release --locked -p rlhfd-tests --test fuzz -- --nocapture

soak: setup ## N iterations (200) of a tiny model in one daemon, 10 000 units in another: does anything grow?
	$(CARGO) build --workspace --locked
	@SOAK_ITERATIONS=$(or $(N),200) RLHFD_REQUIRE_TORCH=1 \
		$(CARGO) test --locked -p rlhfd-tests --test soak -- --nocapture
	@SOAK_UNITS=$(or $(UNITS),10000) \
		$(CARGO) test --locked -p rlhfd-tests --test daemon thousands_of_units -- --nocapture

test: setup ## all tests
	$(PYTHON) -m unittest discover -s tests/scripts
	$(CARGO) build --workspace --locked
	RLHFD_REQUIRE_TORCH=1 $(CARGO) test --workspace --locked

check: ## the tests that need no libtorch
	$(PYTHON) -m unittest discover -s tests/scripts
	$(CARGO) build $(LIGHT) --locked
	$(CARGO) test $(LIGHT) --locked

planes: setup ## the rule of the two planes, by cargo tree and ldd
	$(CARGO) build --workspace --locked
	$(CARGO) test --locked -p rlhfd-tests --test planes

parity: build ## compare with transformers and TRL, in an environment that this installs
	@scripts/parity

tiny: setup ## whole iterations on a tiny random model, in seconds
	$(CARGO) build --workspace --locked
	$(CARGO) test --locked -p rlhfd-tests --test tiny -- --nocapture

bless: ## keep what changed on purpose: the digests of migrations that are not released yet
	RLHFD_BLESS=1 $(CARGO) test --locked -p rlhfd-tests --test tidy

golden: ## make the golden values of tests/golden again, with transformers and TRL
	@$(PYTHON) scripts/parity-env
	.parity/bin/python tests/golden/make_golden.py

doc: setup ## the documentation of the crates, into target/doc
	$(CARGO) doc --workspace --no-deps --locked

clean: ## remove what was built (libtorch, models and demo/state stay)
	$(CARGO) clean
