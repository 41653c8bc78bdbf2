# Thin calls of cargo. What they need (root, packages, Go) is checked by the programs that they run, which install it or name it
# with its remedy.
CARGO ?= cargo
# Cases of the tests on the cluster, by parts of their names; all of them where none is given.
CASES ?=
# The version of cargo-deny that deny.toml is written for.
CARGO_DENY := 0.20.2

.DEFAULT_GOAL := help
.PHONY: help demo test unit breaks e2e bench cluster cluster-down image lint deny fmt crds clean bed

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bed ## bring up a cluster with Quarry and show what it does (root)
	$(CARGO) run -q -p quarry-e2e --bin demo

test: unit e2e ## every test of Quarry; `make breaks` is the test of the cluster itself

unit: ## the tests that need no cluster
	$(CARGO) test --workspace --exclude quarry-e2e

breaks: bed ## the test of the cluster itself: breaks it in every way (root)
	$(CARGO) test -p quarry-bed --test breaks -- --ignored --test-threads=1

e2e: bed ## the tests on a true cluster (root); some of them: make e2e CASES=keeps_data
	$(CARGO) test -p quarry-e2e --test cluster -- $(CASES)

bench: bed ## figures of the main path on a true cluster (root)
	QUARRY_PROFILE=release $(CARGO) run -q -p quarry-e2e --bin bench

cluster: ## bring up a cluster and say how to use it (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- up

cluster-down: ## take it down; nothing of it is left (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- down

image: ## build the images of the manager and the extender, without a daemon (root)
	$(CARGO) run -q -p quarry-bed --bin bed -- image

lint: deny ## formatting, clippy, dependencies, and whether deploy/base/crd.yaml is up to date
	$(CARGO) fmt --all --check
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	$(CARGO) test -q -p quarry-crds --lib the_definition_that_is_shipped_is_the_one_of_this_code

deny: ## licences, sources and doubles of dependencies; installs cargo-deny where it is missing (some minutes, once)
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked -q cargo-deny@$(CARGO_DENY)
	$(CARGO) deny --locked --log-level warn check licenses bans sources

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
