# Everything people and CI run. `make test` is what CI runs; each target says what it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tombolo
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
SEEDS ?= 50

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: tools check unit sim e2e ## Everything CI runs

.PHONY: tools
tools: $(CARGO_DENY) ## Install what the tests need: dig and curl (Debian), cargo-deny (crates.io)
	@missing=(); \
	command -v dig >/dev/null || missing+=(bind9-dnsutils); \
	command -v curl >/dev/null || missing+=(curl); \
	if (( $${#missing[@]} )); then \
	    echo "installing $${missing[*]}: the tests ask DNS servers and call services with them"; \
	    if (( EUID == 0 )); then apt-get update -qq && apt-get install -y -qq "$${missing[@]}"; \
	    else sudo apt-get update -qq && sudo apt-get install -y -qq "$${missing[@]}"; fi; \
	fi

$(CARGO_DENY):
	@echo "installing cargo-deny $(CARGO_DENY_VERSION) into $(CACHE): it checks licences, sources and bans of dependencies"
	cargo install --locked --quiet cargo-deny --version $(CARGO_DENY_VERSION) --root $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)

.PHONY: check
check: $(CARGO_DENY) ## Formatting, lints, dependencies; changes nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO_DENY) --offline check bans licenses sources

.PHONY: unit
unit: ## Tests of every crate, without a running clusterset
	cargo test --workspace --locked --exclude tombolo-chaos --exclude tombolo-sim

.PHONY: sim
sim: ## The simulation over SEEDS seeds
	TOMBOLO_SIM_SEEDS=$(SEEDS) cargo test --locked -p tombolo-sim

.PHONY: e2e
e2e: ## A whole clusterset of real processes on loopback
	cargo build --release --locked
	TOMBOLO_BIN=$(or $(CARGO_TARGET_DIR),target)/release/tombolo cargo test --locked -p tombolo-chaos -- --test-threads=1

.PHONY: fix
fix: ## Rewrite what a tool can rewrite
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
