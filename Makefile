# Thin calls of cargo. What they need (root, packages, Go) is checked by the programs that they run, which install it or name it
# with its remedy.
CARGO ?= cargo
# Cases of the tests on the cluster, by parts of their names; all of them where none is given.
CASES ?=
# The version of cargo-deny that deny.toml is written for.
CARGO_DENY := 0.20.2

.DEFAULT_GOAL := help
.PHONY: help demo test unit fuzz fuzz-build breaks e2e torture bench cluster cluster-down image install-plugin lint deny fmt crds clean bed

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bed ## bring up a cluster with Quarry and show what it does (root)
	$(CARGO) run -q -p quarry-e2e --bin demo

test: unit fuzz breaks e2e torture ## every test

unit: ## the tests that need no cluster
	$(CARGO) test --workspace --exclude quarry-e2e

# What libFuzzer feeds, for how many seconds each, and what tells it which code an input reached: flags that the compiler of
# releases has too. One target for long: make fuzz FUZZ_TARGETS=class FUZZ_SECONDS=3600
FUZZ_TARGETS := quantity class report filter prioritize preempt
FUZZ_SECONDS ?= 10
FUZZ_HOST := $(shell rustc -vV 2>/dev/null | awk '/^host:/ {print $$2}')
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: $(FUZZ_TARGETS:%=fuzz-%) ## made-up input for all that is read from outside, after what is kept in tests/fuzz/corpus

fuzz-build:
	RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR=target/fuzz $(CARGO) build -q --release \
		--manifest-path tests/fuzz/libfuzzer/Cargo.toml --target $(FUZZ_HOST)

# What was found stays in target/fuzz; a crash is written there too, and named.
fuzz-%: fuzz-build
	@mkdir -p target/fuzz/corpus/$*
	target/fuzz/$(FUZZ_HOST)/release/$* -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -verbosity=0 \
		-print_final_stats=1 -artifact_prefix=target/fuzz/$*- target/fuzz/corpus/$* tests/fuzz/corpus/$*

breaks: bed ## the test of the cluster itself: breaks it in every way (root)
	$(CARGO) test -p quarry-bed --test breaks -- --ignored --test-threads=1

e2e: bed ## the tests on a true cluster (root); some of them: make e2e CASES="keeps_data wipe"
	CASES="$(CASES)" $(CARGO) test -p quarry-e2e --test cluster

# How many kills, and which schedule of them; without a seed another one each time.
KILLS ?= 25
SEED ?=
torture: bed ## kills everything at every moment under load: make torture KILLS=1000 SEED=1 (root)
	KILLS=$(KILLS) $(if $(SEED),SEED=$(SEED)) $(CARGO) run -q -p quarry-torture

# Groups of figures, by name; all of them where none is given. The extender is measured as it is shipped: with the flags of its image.
FIGURES ?=
bench: bed ## figures beside their goals, see docs/performance.md; some of them: make bench FIGURES="extender index" (root)
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build -q --release --target $(FUZZ_HOST) -p quarry-bench
	QUARRY_PROFILE=release QUARRY_BED=$(CURDIR)/target/debug/bed target/$(FUZZ_HOST)/release/quarry-bench $(FIGURES)

cluster: ## bring up a cluster with Quarry on it and say how to use it (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- up --quarry

# Also the second one of `make e2e`, which a run that was interrupted leaves.
cluster-down: ## take it down; nothing of it is left (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- down
	$(CARGO) run -q -p quarry-bed --bin bed -- --name $${QUARRY_CLUSTER:-default}-half down

image: ## build the images of the manager and the extender, without a daemon (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- image

install-plugin: ## put kubectl-quarry into ~/.cargo/bin, so that `kubectl quarry` works
	$(CARGO) install --locked -q --path extender --bin kubectl-quarry

lint: deny ## formatting, clippy, dependencies, and whether deploy/base/crd.yaml is up to date
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path tests/fuzz/libfuzzer/Cargo.toml
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	$(CARGO) test -q -p quarry-crds --lib the_definition_that_is_shipped_is_the_one_of_this_code

deny: ## licences, sources and doubles of dependencies; installs cargo-deny where it is missing (some minutes, once)
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked -q cargo-deny@$(CARGO_DENY)
	$(CARGO) deny --locked --log-level warn check licenses bans sources
	$(CARGO) deny --log-level warn --manifest-path tests/fuzz/libfuzzer/Cargo.toml \
		--config tests/fuzz/libfuzzer/deny.toml check licenses sources

fmt: ## format the code
	$(CARGO) fmt --all

crds: ## make deploy/base/crd.yaml anew from crds/src/node_local_storage.rs
	@mkdir -p target
	$(CARGO) run -q -p quarry-crds --bin crdgen > target/crd.yaml
	mv target/crd.yaml deploy/base/crd.yaml

clean: ## remove what was built in this clone; the cache outside of it stays
	$(CARGO) clean

# The nodes of the cluster run it as their first process, from beside the program that brings the cluster up.
bed:
	$(CARGO) build -q -p quarry-bed --bin bed
