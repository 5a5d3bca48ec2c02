# What a newcomer runs first is `make demo`; what a change must pass is `make test lint`.

CARGO ?= cargo
# What the tests need besides Rust and gcc, as Debian calls it: the kernel's own tools, the libraries of the oracles in
# integration/, a tracer, the programs that write and rotate logs, what makes journal files, and fail2ban, whose filters and samples are
# read (its systemd backend needs python3-systemd).
PACKAGES = nftables iproute2 libmnl-dev libclang-dev pkg-config strace util-linux daemontools logrotate rsyslog fail2ban \
	systemd-journal-remote python3-systemd
# fail2ban is there to be read and must not run, now or after a reboot: its unit is masked, and nothing is started meanwhile.
READ_ONLY = unit=/etc/systemd/system/fail2ban.service policy=/usr/sbin/policy-rc.d; \
	test -e $$unit || test -L $$unit || { $$as mkdir -p /etc/systemd/system; $$as ln -s /dev/null $$unit; }; \
	test -e $$policy || { printf '\#!/bin/sh\nexit 101\n' | $$as tee $$policy >/dev/null; $$as chmod 755 $$policy; trap "$$as rm -f $$policy" EXIT; }
# Kernel tests mostly wait for the kernel's clock: more of them than cores at a time.
THREADS ?= 6

.PHONY: demo test packages bench soak fuzz lint vagrant-check install

# The whole way from a log line to a dropped packet, in a throwaway network; no root where user namespaces are allowed.
demo:
	$(CARGO) build
	@$(CARGO) run --quiet -- demo

test: packages
	$(CARGO) build --workspace
	@status=0; set -x; \
	$(CARGO) test --workspace --exclude banset-integration --no-fail-fast || status=$$?; \
	RUST_TEST_THREADS=$(THREADS) $(CARGO) test --package banset-integration --no-fail-fast || status=$$?; \
	exit $$status

# Installs what is missing where that is allowed, else names it and goes on: a test that misses something says so.
packages:
	@missing=; for p in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$p"; done; \
	test -n "$$missing" || exit 0; \
	command -v apt-get >/dev/null || { echo "the tests would like, in Debian's names:$$missing"; exit 0; }; \
	if test "$$(id -u)" = 0; then as=; elif sudo -n true 2>/dev/null; then as="sudo -n"; \
	else echo "the tests need: apt-get install$$missing"; exit 0; fi; \
	echo "installing$$missing"; \
	case "$$missing" in *fail2ban*) $(READ_ONLY) ;; esac; \
	$$as apt-get update -qq </dev/null || true; \
	$$as env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing </dev/null

bench:
	$(CARGO) build --release
	$(CARGO) bench --workspace

# Many minutes: tests that are ignored otherwise.
soak:
	$(CARGO) build --release --workspace
	$(CARGO) test --release --package banset-integration -- --ignored --nocapture

# A quarter of an hour for each target, beginning with what the shipped filters' samples give. cargo-fuzz wants a nightly compiler, or
# to be told that this one will do.
FUZZ_SECONDS ?= 900
fuzz:
	@export RUSTC_BOOTSTRAP=1; for target in line date ini config; do \
	    cargo fuzz build --sanitizer none $$target || exit 1; \
	    bin=$$(ls -t fuzz/target/*/release/$$target | head -n 1); \
	    BANSET_SEEDS=fuzz/corpus/$$target $$bin; \
	    cargo fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -print_final_stats=1 || exit 1; done

# Every jail we ship is enabled once, so `banset check` reads them all and runs the samples of their filters.
lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@mkdir -p target/lint
	@for jail in jails/*.toml; do printf '[jail.%s]\nenabled = true\n\n' "$$(basename "$$jail" .toml)"; done > target/lint/banset.toml
	$(CARGO) run --quiet -- check -c target/lint/banset.toml

# Whether Vagrant understands the machines in vagrant/. Vagrant is too large to be installed for this; the scripts that set the machines up
# are run by the tests.
vagrant-check:
	@if command -v vagrant >/dev/null; then cd vagrant && vagrant validate; else echo "SKIPPED vagrant-check: vagrant is not installed"; fi

DESTDIR ?=
PREFIX ?= /usr/local
install:
	$(CARGO) build --release
	install -D -m 0755 target/release/banset $(DESTDIR)$(PREFIX)/sbin/banset
