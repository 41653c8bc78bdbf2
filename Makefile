# Thin calls of cargo: what they need is checked, and named with its remedy where it is missing, by the programs that they run.
CARGO ?= cargo
# The cluster that cluster, cluster-down and test use; clusters of different names do not know of each other.
BED := $(CARGO) run -q -p quarry-bed --bin bed --

.DEFAULT_GOAL := help
.PHONY: help demo test unit cluster cluster-down image lint fmt deny crds clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## bring up a cluster with Quarry and show what it does (root; about 20 minutes the first time, then one)
	$(CARGO) run -q -p quarry-e2e --bin demo

test: unit ## every test: first those without a cluster, then those on a true one (root)
	$(CARGO) test -p quarry-e2e --test cluster

unit: ## the tests that need no cluster
	$(CARGO) test --workspace --exclude quarry-e2e

cluster: ## bring up a cluster and say how to use it (root)
	$(BED) up

cluster-down: ## take it down; nothing of it is left (root)
	$(BED) down

image: ## build the images of the manager and the extender, without a daemon (root)
	$(BED) image

lint: deny ## formatting, clippy, licences, and whether generated files are up to date
	$(CARGO) fmt --all --check
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	$(CARGO) test -q -p quarry-crds the_definition_that_is_shipped_is_the_one_of_this_code

fmt: ## format the code
	$(CARGO) fmt --all

deny: ## licences, sources and doubles of dependencies, where cargo-deny is installed (cargo install --locked cargo-deny)
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked --log-level warn check licenses bans sources; \
	else \
		echo "cargo-deny is not installed: licences, sources and doubles of dependencies are not checked"; \
	fi

crds: ## make deploy/base/crd.yaml anew from crds/src/node_local_storage.rs
	@mkdir -p target
	$(CARGO) run -q -p quarry-crds --bin crdgen > target/crd.yaml
	mv target/crd.yaml deploy/base/crd.yaml

clean: ## remove what cargo and the image build made in this clone; the cache outside of it stays
	$(CARGO) clean
