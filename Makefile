# What there is to do. `make demo` and `make test` set up everything that they need.

CARGO ?= cargo
FUZZ_SECONDS ?= 60
CHAOS_SEEDS ?= 1 2 3
CHAOS_SECONDS ?= 120
SOAK_SECONDS ?= 3600
ATTRITION_SEEDS ?= 1
ATTRITION_SECONDS ?= 120
FRONTENDS ?= 100000

.PHONY: help setup build demo test fleet bench bench-short bench-tls bench-latency bench-certificates bench-outages bench-table bench-fleet bench-hoards bench-routing attacks soak chaos attrition failovers fuzz deny cargo-deny

help:
	@echo "make demo                see it work: a private Redis, two backends, the proxy, a live edit"
	@echo "make test                formatting, lints, unit, property and integration tests"
	@echo "make fleet               instances of several flags beside Hipache and the original PlanB: no dead mark is lost, none stays"
	@echo "make build               the release executable, target/release/planb"
	@echo "make bench               beside nginx and HAProxy, plain and TLS, in 20 minutes"
	@echo "make bench-short         the same in four, to see whether something has gone wrong"
	@echo "make bench-tls           the part with TLS: handshakes, resumption, requests"
	@echo "make bench-latency       from an edit on the Redis master to the first request that follows it"
	@echo "make bench-certificates  100,000 certificates in Redis: the start, memory, rotation"
	@echo "make bench-outages       what a loss of Redis costs: requests, time, processor time, memory"
	@echo "make bench-table         a large table: load, memory, edits, who waits; FRONTENDS=100000"
	@echo "make bench-fleet         what 20 instances ask of a master and two replicas"
	@echo "make bench-hoards        clients that take much and give nothing, and what they cost in memory, beside nginx and HAProxy"
	@echo "make attacks             what honest clients notice of hostile ones, beside nginx and HAProxy, in a quarter of an hour"
	@echo "make soak                everything at once for an hour, SOAK_SECONDS=3600: nothing may fail, nothing may grow"
	@echo "make bench-routing       finding, choosing and editing alone, at 1,000 and 1,000,000 hosts"
	@echo "make chaos               random faults of Redis and the network while clients ask, CHAOS_SEEDS=\"1 2 3\", CHAOS_SECONDS=120 each"
	@echo "make attrition           backends killed, frozen and ended at random under 500 requests a second, ATTRITION_SEEDS=\"1\", ATTRITION_SECONDS=120 each"
	@echo "make failovers           random fail-overs of three Redis servers under three sentinels, while clients ask"
	@echo "make deny                licences, advisories and duplicates among the dependencies"
	@echo "make fuzz                each reader of foreign bytes against random ones, for FUZZ_SECONDS=60 each"

setup:
	@scripts/setup

build: setup
	$(CARGO) build --release --locked

demo: setup
	$(CARGO) build --release --locked
	@target/release/planb demo

test: setup cargo-deny
	$(CARGO) fmt --check
	@# cargo-deny looks at the crates of every platform, of which a build fetches its own alone.
	$(CARGO) fetch --locked
	$(CARGO) deny --locked --offline check --hide-inclusion-graph bans licenses sources
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) test --locked --lib --bins
	TMPDIR=$$(scripts/fast-tmp) $(CARGO) test --locked --test it -- --test-threads=8

fleet: setup
	TMPDIR=$$(scripts/fast-tmp) $(CARGO) test --locked --test it -- --test-threads=4 fleet identity::

bench: build
	bench/proxies $(BENCH)
	CARGO=$(CARGO) bench/tls $(BENCH)

bench-short:
	$(MAKE) bench BENCH="--seconds 1 --rounds 1"

bench-tls: setup
	CARGO=$(CARGO) bench/tls $(BENCH)

bench-latency: setup
	$(CARGO) bench --locked --bench latency

bench-certificates: setup
	$(CARGO) bench --locked --bench certificates

bench-outages: build
	bench/outages

bench-table: build
	bench/table --frontends $(FRONTENDS)

bench-fleet: build
	bench/fleet

bench-hoards: build
	bench/hoards

attacks: build
	bench/attacks

soak: build
	bench/soak --seconds $(SOAK_SECONDS)

bench-routing: setup
	$(CARGO) bench --locked --bench routing

chaos: setup
	@for seed in $(CHAOS_SEEDS); do \
		$(CARGO) bench --locked --bench chaos -- --seed $$seed --seconds $(CHAOS_SECONDS) || exit 1; \
	done

attrition: setup
	@for seed in $(ATTRITION_SEEDS); do \
		$(CARGO) bench --locked --bench attrition -- --seed $$seed --seconds $(ATTRITION_SECONDS) || exit 1; \
	done

failovers: build
	bench/failovers

cargo-deny:
	@command -v cargo-deny >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny

deny: cargo-deny
	$(CARGO) deny check

# Without a sanitizer, which needs a nightly compiler: the code under test has no unsafe blocks that it could watch.
fuzz: setup
	@command -v c++ >/dev/null 2>&1 || { echo "please install g++" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@for target in $$($(CARGO) fuzz list); do \
		$(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done
