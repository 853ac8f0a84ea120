# What there is to do. `make demo` and `make test` set up everything that they need.

CARGO ?= cargo

.PHONY: help setup build demo test bench bench-table bench-latency deny

help:
	@echo "make demo           see it work: a private Redis, two backends, the proxy, a live edit"
	@echo "make test           formatting, lints, unit, property and integration tests"
	@echo "make build          the release executable, target/release/planb"
	@echo "make bench          beside nginx and HAProxy, in one run"
	@echo "make bench-latency  from an edit on the Redis master to the first request that follows it"
	@echo "make bench-table    the routing table alone, at 1,000 and 1,000,000 hosts"
	@echo "make deny           licences, advisories and duplicates among the dependencies"

setup:
	@scripts/setup

build: setup
	$(CARGO) build --release --locked

demo: setup
	$(CARGO) build --release --locked
	@target/release/planb demo

test: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --lib --bins
	$(CARGO) test --locked --test it -- --test-threads=8

bench: build
	bench/proxies

bench-latency: setup
	$(CARGO) bench --locked --bench latency

bench-table: setup
	$(CARGO) bench --locked --bench table

deny:
	@command -v cargo-deny >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check
