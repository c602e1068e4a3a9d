# The two commands of the README are `make run` and `make test`; both set the machine up first.
#
#   make run [ONCE=1]   build, then show a server running a pod with two containers; ONCE=1 tears it all down again
#   make test           build, then run every test: test-here, then node-test
#   make test-here      the tests that run on this machine
#   make node-test      the package in two nodes with systemd (NODE=ns|vm for one of them, TEST="NAME…", PROFILE=dev; e2e/node/README.md)
#   make build          the release binaries: target/release/crimson, target/release/crimson-monitor
#   make deb            the Debian package of these: target/debian/crimson_*.deb (PROFILE=dev for one of unoptimised programs)
#   make bench          what a pull of 450 MB takes, then the time from a pulled image to a running pod, step by step
#                       (ROUNDS=20, PULLS=5, ENDPOINT=… for another server, REGISTRY=… if it needs a registry it knows);
#                       then how fast 100 MiB come out of exec and of a forwarded port; then what lists, figures and idleness
#                       cost with 100 pods of three containers (PODS=100; IMAGE=… for another server)
#   make fuzz           look for inputs that break a promise of what reads other people's bytes (SECONDS=20, TARGET="NAME…")
#   make soak           the promises of a pod's life in full size, about an hour (SOAK="verbs --seconds 60 --seed 1" for a part)
#   make lint           formatting, scripts, clippy with warnings denied, dependency policy
#   make deps           install what is missing from Debian, nothing else

CARGO   ?= cargo
ROUNDS  ?= 20
PULLS   ?= 5
PODS    ?= 100
IMAGE   ?= registry.k8s.io/e2e-test-images/busybox:1.29-2
SECONDS ?= 20
PROFILE ?= release
# A registry of crates may be out of reach for a moment.
export CARGO_NET_RETRY ?= 10
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null)
CARGO_DEB := $(or $(shell command -v cargo-deb),.cache/cargo-deb/bin/cargo-deb)

.PHONY: run test build build-dev deb deps-deb bench fuzz soak lint deps deps-test fmt scripts clippy deny test-here node-test node-image

# The harness is a client only: built unoptimised, it compiles in a fraction of the time.
run: deps build
	$(CARGO) build --package e2e --bin demo
	CRIMSON_BIN_DIR=target/release ./target/debug/demo $(if $(ONCE),--once)

test: test-here node-test
.NOTPARALLEL: test

# The budget of a monitor's memory is that of the program as it is shipped.
test-here: deps-test
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast
	$(CARGO) build --profile monitor --package monitor
	CRIMSON_MONITOR=$(CURDIR)/target/monitor/crimson-monitor $(CARGO) test --package monitor --test blackbox an_idle_monitor

# The harness itself comes first: what it promises about limits, reboots and leaving nothing behind takes a minute.
node-test: deps-test node-image
	e2e/node/selftest
	CARGO="$(CARGO)" PROFILE="$(PROFILE)" TEST="$(TEST)" e2e/node/test $(NODE)

node-image: deps-test
	e2e/node/image

# The monitor has a profile of its own (small, aborting on panic), so cargo puts it elsewhere. `crimson status` shows the commit.
build:
	$(if $(COMMIT),CRIMSON_COMMIT=$(COMMIT)) $(CARGO) build --release --package crimson
	$(CARGO) build --profile monitor --package monitor
	install -m 0755 target/monitor/crimson-monitor target/release/crimson-monitor

# PROFILE=dev packages what `make test` has built anyway. REVISION=2 makes a package that is an upgrade of the same version.
deb: deps-deb $(if $(filter dev,$(PROFILE)),build-dev,build) $(CARGO_DEB)
	deploy/debian/stage.sh target/$(if $(filter dev,$(PROFILE)),debug,release)
	PATH="$(dir $(abspath $(CARGO_DEB))):$$PATH" $(CARGO) deb --no-build --no-strip $(if $(filter dev,$(PROFILE)),--fast) $(if $(REVISION),--deb-revision $(REVISION))

# Without dpkg-shlibdeps the package would come out without its dependencies.
deps-deb:
	@./e2e/deps.sh deb

build-dev:
	$(CARGO) build --workspace --bins

# Not in Debian: compiled once into .cache, in the version that this toolchain compiles. Without its default features it calls xz rather than linking to it.
.cache/cargo-deb/bin/cargo-deb:
	CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --locked --debug --no-default-features --root .cache/cargo-deb --target-dir .cache/cargo-deb/target cargo-deb@3.8.0
	rm -rf .cache/cargo-deb/target

bench: deps build
	$(CARGO) build --package e2e --bin pod_start --bin pull_time
	for packing in gzip zstd; do \
		echo "$$packing:" && CRIMSON_BIN_DIR=target/release ./target/debug/pull_time --rounds $(PULLS) --packing $$packing \
			$(if $(ENDPOINT),--endpoint $(ENDPOINT) $(if $(REGISTRY),--registry $(REGISTRY))) || exit 1; \
	done
	CRIMSON_BIN_DIR=target/release ./target/debug/pod_start --rounds $(ROUNDS) $(if $(ENDPOINT),--endpoint $(ENDPOINT))
	$(CARGO) build --release --package e2e --bin streaming_rate
	CRIMSON_BIN_DIR=target/release ./target/release/streaming_rate $(if $(ENDPOINT),--endpoint $(ENDPOINT))
	$(CARGO) build --release --package e2e --bin density
	CRIMSON_BIN_DIR=target/release ./target/release/density --pods $(PODS) $(if $(ENDPOINT),--endpoint $(ENDPOINT) --image $(IMAGE))

fuzz: deps-test
	CARGO="$(CARGO)" fuzz/run $(SECONDS) $(TARGET)

# SOAK: names of trials and options, see e2e/src/bin/soak.rs.
soak: deps-test build
	$(CARGO) build --package e2e --bin soak
	CRIMSON_BIN_DIR=target/release ./target/debug/soak $(SOAK)

lint: fmt scripts clippy deny

fmt:
	$(CARGO) fmt --all --check

# Every file that begins as a script of a shell. What they source is checked with them.
scripts: deps-test
	find .ci deploy e2e fuzz -type f ! -name '*.rs' -exec grep -lE '^(#!/bin/(ba)?sh|# shellcheck shell=)' {} + | xargs shellcheck --external-sources --severity=warning

clippy: deps
	$(CARGO) clippy --workspace --all-targets -- --deny warnings

# Not in a release of Debian: compiled once into .cache, in the version that this toolchain compiles. The advisory database is asked by the scheduled run only, so that
# a change does not fail for what somebody else published today.
CARGO_DENY := $(or $(shell command -v cargo-deny),.cache/cargo-deny/bin/cargo-deny)

deny: $(CARGO_DENY)
	$(CARGO_DENY) --workspace check --hide-inclusion-graph bans licenses sources

.cache/cargo-deny/bin/cargo-deny:
	CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --locked --debug --root .cache/cargo-deny --target-dir .cache/cargo-deny/target cargo-deny@0.20.2
	rm -rf .cache/cargo-deny/target

deps:
	./e2e/deps.sh

deps-test:
	./e2e/deps.sh test
