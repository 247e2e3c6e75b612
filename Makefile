# Everything that a developer or a build server runs. Each target sets up what it lacks and is quick the second time.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The cluster that `make cluster` keeps up, for tests to use again: PROJECTIONIST_CLUSTER=default make test
NAME ?= default

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/projectionist
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PLATFORM := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# `quick` compiles much faster, for trying things out: make image PROFILE=quick
PROFILE ?= release
BINARY := $(TARGET_DIR)/$(PLATFORM)/$(PROFILE)/projectionist
IMAGE := docker.io/library/projectionist:dev
ARCHIVE := $(TARGET_DIR)/image/projectionist.tar
# The linker's account of the binary.
MAP := $(abspath $(TARGET_DIR))/image/projectionist.map
# 30 MiB, for an image that is meant to be used.
LARGEST_IMAGE := 31457280
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
FUZZ_VERSION := 0.13.2
FUZZ := $(CACHE)/cargo-fuzz-$(FUZZ_VERSION)/bin/cargo-fuzz
# How long `make fuzz` tries each target.
SECONDS ?= 30
# The tests of all packages but the scenarios. Always with --workspace: cargo would choose other features for a single package, and compile everything again.
OTHER_TESTS := $(filter-out scenarios,$(shell sed -n '/^\[\[test\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml) $(basename $(notdir $(wildcard tests/*/tests/*.rs))) $(notdir $(patsubst %/main.rs,%,$(wildcard examples/*/tests/*/main.rs))))
# So many scenarios at once, and so many of the other tests, most of which wait for servers: two cores carry them.
SIDE_BY_SIDE ?= 3
OTHERS_SIDE_BY_SIDE ?= 4
# Builds a program of ours and runs it. Of the whole workspace, and with a test (the smallest): cargo chooses the features of dependencies for what it is asked to
# build, and this way they are those of `cargo test --workspace`. A single package would have others, and half of all dependencies would be compiled once more.
RUN = cargo build --quiet --workspace --test postgres --bin $(1) && $(TARGET_DIR)/debug/$(1)
BED := $(call RUN,test-cluster)

CRD := crds/projections.projectionist.dev.yaml
CHART := charts/projectionist
CHART_CRD := $(CHART)/files/projections.projectionist.dev.yaml
MANIFEST := manifests/install.yaml
RENDER := template projectionist $(CHART) --namespace projectionist --no-hooks --set namespace.create=true

.PHONY: help build test campaign fuzz lint demo demo-shop bench bench-projector bench-workers bench-scaling cluster cluster-down image shop generate pictures packages prepare servers binary worker

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

build: packages ## Compile everything for development
	cargo build --workspace --all-targets

# The image is compiled beside everything else that comes before the tests, since the linker of the release uses one core for minutes and downloads use none, and
# before any test runs, since all scenarios wait for it; `make test FIRST=lint` uses the other core for that. The scenarios wait for a cluster most of the time, so
# all other tests run beside them. What they print comes at the end.
test: packages ## Run all tests, on real servers and a real cluster
	@mkdir -p $(TARGET_DIR)/generated; \
	$(MAKE) --no-print-directory image worker > $(TARGET_DIR)/generated/image.log 2>&1 & image=$$!; \
	trap 'kill $$image 2> /dev/null' INT TERM; \
	{ $(MAKE) --no-print-directory prepare servers && $(FIRST:%=$(MAKE) --no-print-directory % && )cargo test --workspace --no-run; } || { kill $$image 2> /dev/null; exit 1; }; \
	wait $$image || { cat $(TARGET_DIR)/generated/image.log; exit 1; }
	@cargo test --workspace --test scenarios -- --test-threads=$(SIDE_BY_SIDE) > $(TARGET_DIR)/generated/scenarios.log 2>&1 & scenarios=$$!; \
	trap 'kill $$scenarios 2> /dev/null' INT TERM; failed=; \
	cargo test --no-fail-fast --workspace --lib --bins $(OTHER_TESTS:%=--test %) -- --test-threads=$(OTHERS_SIDE_BY_SIDE) || failed="$$failed others"; \
	cargo test --workspace --doc || failed="$$failed documentation"; \
	echo "The scenarios on the cluster go on; what they print comes when they have ended."; \
	wait $$scenarios || failed="$$failed scenarios"; \
	cat $(TARGET_DIR)/generated/scenarios.log; \
	[ -z "$$failed" ] || { echo "tests failed:$$failed" >&2; exit 1; }

campaign: prepare ## Let every kind of fault happen at every write of the operator (hours; `make test` plays a sample)
	PROJECTIONIST_CAMPAIGN=all cargo test --package projectionist --test campaign a_fault_at_any_write -- --nocapture

# Without the sanitizer: there is no unsafe code of ours for it to watch, and without it a target tries several times as much.
fuzz: packages $(FUZZ) ## Throw random input at the parsers of the metrics API (SECONDS=30 for each)
	@rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal
	@for target in $$($(FUZZ) list --fuzz-dir fuzz); do \
		echo "fuzz: $$target, $(SECONDS) s"; \
		rustup run nightly $(FUZZ) run --fuzz-dir fuzz --sanitizer none --codegen-units 16 $$target -- \
			-max_total_time=$(SECONDS) -dict=fuzz/dictionary.txt -max_len=4096 -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 -print_funcs=0 -verbosity=0 || exit 1; \
	done

lint: packages $(DENY) ## Check format, clippy, licences, and that the generated files are up to date
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	$(DENY) --workspace check --hide-inclusion-graph licenses bans sources
	@mkdir -p $(TARGET_DIR)/generated
	$(call RUN,projectionist) crd > $(TARGET_DIR)/generated/crd.yaml
	diff -u $(CRD) $(TARGET_DIR)/generated/crd.yaml || { echo "$(CRD) is out of date: run make generate" >&2; exit 1; }
	diff -u $(CRD) $(CHART_CRD) || { echo "$(CHART_CRD) is out of date: run make generate" >&2; exit 1; }
	helm=$$($(BED) program helm) && $$helm $(RENDER) > $(TARGET_DIR)/generated/manifest.yaml
	diff -u $(MANIFEST) $(TARGET_DIR)/generated/manifest.yaml || { echo "$(MANIFEST) is out of date: run make generate" >&2; exit 1; }

generate: packages ## Write crds/, the chart's copy of it and manifests/ from code and chart
	@mkdir -p $(dir $(CRD)) $(dir $(CHART_CRD)) $(dir $(MANIFEST)) $(TARGET_DIR)/generated
	$(call RUN,projectionist) crd > $(TARGET_DIR)/generated/crd.yaml
	cp $(TARGET_DIR)/generated/crd.yaml $(CRD)
	cp $(CRD) $(CHART_CRD)
	helm=$$($(BED) program helm) && $$helm $(RENDER) > $(TARGET_DIR)/generated/manifest.yaml
	cp $(TARGET_DIR)/generated/manifest.yaml $(MANIFEST)

# Made from text with graphviz, whose versions draw a little differently: so no check compares them.
pictures: ## Draw docs/*.svg from docs/*.dot
	@command -v dot > /dev/null || { echo "graphviz is missing; as root: apt-get install -y --no-install-recommends graphviz" >&2; exit 1; }
	@for text in docs/*.dot; do dot -Tsvg "$$text" -o "$${text%.dot}.svg"; done

demo: image prepare ## Show workers scaled by lag on a real cluster (ARGS="--help" lists options)
	$(call RUN,demo) $(ARGS)

demo-shop: image prepare servers ## Run the whole shop on a real cluster, with a sale and faults, and check it (ARGS="--help" lists options)
	$(call RUN,demo-shop) $(ARGS)

bench: image prepare ## Measure, and print all the numbers (ARGS="--help" lists options)
	cargo run --quiet --profile measuring --package bench -- $(ARGS)

bench-projector: packages ## Measure workers of the built-in projector beside plain clients (no cluster needed)
	cargo run --quiet --profile measuring --package bench --bin bench-projector -- $(ARGS)

bench-workers: image prepare ## Race workers that are not ours on a real cluster, scaled by us and by others (ARGS="--help" lists options)
	cargo run --quiet --profile measuring --package bench-workers -- $(ARGS)

bench-scaling: packages ## Replay traces against other ways to scale by, side by side (no cluster needed)
	cargo run --quiet --profile measuring --package bench-scaling

cluster: packages ## Bring the test cluster up and leave it up (NAME=default)
	$(BED) up --name $(NAME)

cluster-down: packages ## Take it down without a trace
	$(BED) down --name $(NAME)

image: binary ## Build the container image into target/image/projectionist.tar
	@$(MAKE) --no-print-directory $(ARCHIVE)

# Packed relocations take 0.8 MB less than those of a table; glibc applies them from 2.36 on.
binary: packages
	@mkdir -p $(dir $(MAP))
	RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --quiet --profile $(PROFILE) --package projectionist --bin projectionist --target $(PLATFORM) -- -C link-arg=-Wl,-Map=$(MAP) -C link-arg=-Wl,-z,pack-relative-relocs

# The test bed's worker, which waits most of the time, and the programs of examples/shop; their paths are printed last.
worker: packages
	@RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --package test-worker --target $(PLATFORM)
	@echo $(TARGET_DIR)/$(PLATFORM)/debug/test-worker

shop: packages
	@RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --profile $(PROFILE) --package shop --target $(PLATFORM)
	@echo $(TARGET_DIR)/$(PLATFORM)/$(PROFILE)/shop

# Written beside and moved into place, since several tests may ask for it at once.
$(ARCHIVE): $(BINARY) Dockerfile
	@command -v buildah > /dev/null || { $(BED) packages; }
	@set -e; work=$(TARGET_DIR)/image/work-$$$$; \
	builder="buildah --root $$PWD/$$work/storage --runroot $$PWD/$$work/run --storage-driver vfs"; \
	case $(TARGET_DIR) in /*) builder="buildah --root $$work/storage --runroot $$work/run --storage-driver vfs";; esac; \
	trap 'rm -rf "$$work"' EXIT; mkdir -p $$work/context; cp $(BINARY) $$work/context/projectionist; \
	$$builder build --quiet --isolation chroot --timestamp 0 --file Dockerfile --tag $(IMAGE) $$work/context > /dev/null; \
	$$builder push --quiet $(IMAGE) docker-archive:$$work/image.tar:$(IMAGE); \
	[ $(PROFILE) != release ] || [ $$(stat -c %s $$work/image.tar) -le $(LARGEST_IMAGE) ] || { echo "the image is larger than 30 MiB" >&2; exit 1; }; \
	mv $$work/image.tar $@; ls -lh $@ | awk '{print "$(IMAGE): " $$5 " in " $$9}'; \
	awk -f tests/cluster/images/cost.awk $(MAP)

# What has to be there before anything of ours can be compiled. The rest the test bed installs itself.
packages:
	@command -v cargo > /dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@if ! command -v cc > /dev/null || ! command -v c++ > /dev/null || ! command -v ar > /dev/null; then \
		install="apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev ca-certificates"; \
		if [ "$$(id -u)" = 0 ]; then sh -c "$$install"; else echo "a C and C++ compiler is missing (C++ for the test bed's Kafka consumer); as root: $$install" >&2; exit 1; fi; \
	fi

prepare: packages
	@$(BED) prepare

# Before a test enters a cluster's network, from inside which nothing can be fetched.
servers: packages
	@$(BED) servers

$(FUZZ):
	cargo install --quiet --locked cargo-fuzz --version $(FUZZ_VERSION) --root $(CACHE)/cargo-fuzz-$(FUZZ_VERSION)

# Unoptimized and without what a debugger wants, since compiling takes the time and checking does not.
$(DENY):
	CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --debug --locked cargo-deny --version $(DENY_VERSION) --root $(CACHE)/cargo-deny-$(DENY_VERSION)
