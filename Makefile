# The one entry point. `make` lists the targets.
CARGO ?= cargo
GUEST_TARGET := wasm32-wasip1
COMPONENT_TARGET := wasm32-wasip2
COMPONENTS := --package debug-echo-typed --package typed-misbehave --package event-echo --package http-handler --package http-broker --package lines --package onvif --package opcua --package opcua-broker --package udev --package udev-broker --package workload --package zeroconf
# Where cargo builds, which is not always `target`: CARGO_TARGET_DIR, or a user's configuration.
TARGET_DIR = $(CARGO) metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
HOST = $$(rustc -vV | sed -n 's/^host: //p')

.DEFAULT_GOAL := help
.PHONY: help deb book upgrade-test image image-test quickstart test differential bench guests build check docs deny toolchain programs workload test-peers interop
# Where programs of others are installed: the user's cache.
CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/akri-krustlet

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: guests build ## build everything, run a node with a WebAssembly handler, watch it find devices (ends by itself)
	@PROGRAM=$$($(TARGET_DIR))/debug/akri-krustlet \
		GUESTS=$$(cd wasm-handlers && $(TARGET_DIR))/$(GUEST_TARGET)/release \
		COMPONENTS=$$(cd wasm-handlers && $(TARGET_DIR))/$(COMPONENT_TARGET)/release manifests/standalone/quickstart

test: guests workload programs test-peers ## run all tests; those of the cluster need Go 1.26 or KUBEBUILDER_ASSETS (SKIP_CLUSTER_TESTS=1 leaves them out)
	$(CARGO) test --workspace
	cd wasm-handlers && $(CARGO) test --package debug-echo --package debug-echo-typed --package akri-handler --package akri-recording --features akri-handler/schema --package broker --package http-handler --package lines --package onvif --package opcua --package opcua-broker --package opcua-codec --package udev --package zeroconf --target $(HOST)

# Servers and cameras that tests talk to, from PyPI; without Python those tests say that they are skipped. For root also umockdev, and in CI
# Avahi and Prometheus (for its promtool), which where people work would begin to serve.
test-peers: $(CACHE)/peers/installed
	@test "$$(id -u)" != 0 || { command -v umockdev-run && test -z "$(CI)" -o -x /usr/sbin/avahi-daemon -a -x /usr/bin/promtool; } >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq umockdev $(if $(CI),avahi-daemon && apt-get install -y -qq --no-install-recommends prometheus); } >/dev/null \
		|| echo "umockdev could not be installed (Debian: apt-get install umockdev): tests that use it are skipped" >&2
$(CACHE)/peers/installed: provider/cli/tests/peers/requirements.txt
	@if command -v python3 >/dev/null; then \
		python3 -m venv $(CACHE)/peers && $(CACHE)/peers/bin/pip install --quiet --disable-pip-version-check --requirement $< && touch $@ \
			|| { rm -rf $(CACHE)/peers; echo "programs of others could not be installed: tests that talk to them are skipped" >&2; }; \
	else echo "python3 is missing: tests that talk to programs in it are skipped" >&2; fi

interop: guests ## build and run handlers in Python and JavaScript (needs python3 and npm)
	python3 -m venv $(CACHE)/python
	$(CACHE)/python/bin/pip install --quiet --disable-pip-version-check componentize-py==0.25.1
	npm install --silent --no-save --prefix $(CACHE)/javascript componentize-qjs@0.4.5
	cd wasm-handlers/examples/python && PYTHONDONTWRITEBYTECODE=1 $(CACHE)/python/bin/componentize-py -d ../../../proto/wit \
		-w discovery-handler componentize handler -o $(CACHE)/python/handler.wasm
	cd wasm-handlers/examples/javascript && $(CACHE)/javascript/node_modules/.bin/componentize-qjs --wit ../../../proto/wit --js handler.js \
		-n discovery-handler --sync --opt-size -o $(CACHE)/javascript/handler.wasm
	HANDLER_IN_PYTHON=$(CACHE)/python/handler.wasm HANDLER_IN_JAVASCRIPT=$(CACHE)/javascript/handler.wasm \
		$(CARGO) test --workspace --test interop

differential: guests workload programs ## compare this node with a real kubelet, pod by pod (needs root)
	$(CARGO) build --workspace --bins
	$(CARGO) test --package akri-krustlet --test differential -- --nocapture

# `make bench -- peers` measures one part only, and leaves the others in docs/benchmarks.md.
PARTS := discovery typed protocols authors cluster pods devices akri handler-mode fleet peers
.PHONY: $(PARTS)
$(PARTS):
	@$(if $(filter bench,$(MAKECMDGOALS)),:,$(MAKE) --no-print-directory bench -- $@)

bench: guests workload programs ## measure on a release build, print the table, write docs/benchmarks.md
	$(CARGO) build --release --workspace --bins
	$(CARGO) bench --workspace --bench figures -- $(filter $(PARTS),$(MAKECMDGOALS))

guests: toolchain ## build the WebAssembly guests
	cd wasm-handlers && $(CARGO) build --release
	cd wasm-handlers && $(CARGO) build --release $(COMPONENTS) --target $(COMPONENT_TARGET)

# The program that tests run on both kinds of node, as a static Linux program; `guests` builds it as a module.
workload: toolchain
	cd wasm-handlers && RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --package workload --target $(HOST)

# Static, with glibc: its own resolver is part of it.
image: toolchain ## make a container image of the static program, without a daemon
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --package akri-krustlet --bin akri-krustlet --target $(HOST)
	@mkdir -p $$($(TARGET_DIR))/image
	manifests/image/build $$($(TARGET_DIR))/$(HOST)/release/akri-krustlet $$($(TARGET_DIR))/image/akri-krustlet.tar

image-test: image guests programs ## run the container image in a real containerd (needs root)
	$(CARGO) build --workspace --bins
	IMAGE=$$($(TARGET_DIR))/image/akri-krustlet.tar $(CARGO) test --package akri-krustlet --test cluster_image -- --nocapture

build: toolchain ## build the node, and the control plane of tests and demos (debug)
	$(CARGO) build --workspace --bins

check: ## format and lints
	$(CARGO) fmt --all --check
	cd wasm-handlers && $(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cd wasm-handlers && $(CARGO) clippy --release -- -D warnings
	cd wasm-handlers && $(CARGO) clippy --release $(COMPONENTS) --target $(COMPONENT_TARGET) -- -D warnings

docs: ## build the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

# What the tests of the cluster run on: a Kubernetes control plane, built once into the user's cache, and a registry; for root
# also a Linux node, with Debian's runc.
programs:
ifndef SKIP_CLUSTER_TESTS
	@command -v docker-registry >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq docker-registry; } \
		|| { echo "docker-registry is missing: install it (Debian: apt-get install docker-registry) or set SKIP_CLUSTER_TESTS=1" >&2; exit 1; }
	@test "$$(id -u)" != 0 || { command -v "$${RUNC:-runc}" && command -v ip; } >/dev/null || { apt-get update -qq && apt-get install -y -qq runc iproute2; } \
		|| { echo "runc and ip are missing: install them (Debian: apt-get install runc iproute2) or set SKIP_CLUSTER_TESTS=1" >&2; exit 1; }
	$(CARGO) run --quiet --package control-plane -- build tools $$(test "$$(id -u)" != 0 || echo --linux-node)
endif

# The program of the last tag, once; in a checkout of its own.
upgrade-test: guests ## replace the program of the last release by this one and back, 50 times, under load
	$(CARGO) build --workspace --bins
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null) || { echo "there is no release yet: git has no tag. This program replaces itself."; tag=; }; \
	before=; if [ -n "$$tag" ]; then \
		before=$(CACHE)/releases/$$tag; \
		test -d $$before || git worktree add --force $$before $$tag; \
		$(CARGO) build --package akri-krustlet --bins --manifest-path $$before/Cargo.toml --target-dir $$before/target || exit 1; \
		before="PROGRAM_BEFORE=$$before/target/debug/akri-krustlet"; fi; \
	env $$before UPGRADES=50 $(CARGO) test --package akri-krustlet --test upgrade -- --nocapture

deb: ## make a Debian package of the release build (needs cargo-deb)
	$(CARGO) build --release --package akri-krustlet --bin akri-krustlet
	manifests/deb/build release $$($(TARGET_DIR))/debian/

book: ## make a site of the documentation (builds mdBook if it is missing)
	@command -v mdbook >/dev/null || test -x $(CACHE)/mdbook/bin/mdbook || $(CARGO) install mdbook --locked --no-default-features --features search --debug --version 0.5.4 --root $(CACHE)/mdbook
	@PATH="$(CACHE)/mdbook/bin:$$PATH" docs/book/build $$($(TARGET_DIR))/book

deny: ## check licences, sources and banned crates (builds cargo-deny if it is missing)
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked --debug --version 0.20.2
	$(CARGO) deny check licenses bans sources

# rust-toolchain.toml names the toolchain; where rustup manages it, its targets are added if they are missing.
toolchain:
	@if command -v rustup >/dev/null; then \
		for target in $(GUEST_TARGET) $(COMPONENT_TARGET); do \
			rustc --print target-libdir --target $$target 2>/dev/null | xargs test -d || rustup target add $$target || exit 1; \
		done; \
	fi
