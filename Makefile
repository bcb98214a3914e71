# What takes too long for every change. Everything else is in .ci/run.

PYTHON ?= .venv/bin/python
KTLOG := $(PYTHON) -m ktlog

.PHONY: bench faults interop

# Benchmarks, whole: about an hour, of which the first run needs ten minutes more to fill the log (8 GB).
# BENCH is where the filled log is kept and what the runs print. See docs/performance.md.
# BENCH_STORE: the URL of an empty PostgreSQL database, for the raw append over two front ends; without it that is left out.
BENCH ?= bench-results
SHELL := bash
.SHELLFLAGS := -eo pipefail -c

bench:
	mkdir -p $(BENCH)
	$(KTLOG) bench prefill --dir $(BENCH)/log
	$(KTLOG) bench map --dir $(BENCH)/log | tee $(BENCH)/map.txt
	$(KTLOG) bench read --dir $(BENCH)/log | tee $(BENCH)/read.txt
	$(KTLOG) bench recover --dir $(BENCH)/log | tee $(BENCH)/recover.txt
	$(KTLOG) bench submit --dir $(BENCH)/log --overload | tee $(BENCH)/submit.txt
	$(KTLOG) bench submit --dir $(BENCH)/log --without-argon2 --messages 10000 | tee $(BENCH)/submit-without-argon2.txt
	$(KTLOG) bench pages | tee $(BENCH)/pages.txt
	$(KTLOG) bench log | tee $(BENCH)/log.txt
	if [ -n "$(BENCH_STORE)" ]; then $(KTLOG) bench log --store "$(BENCH_STORE)" | tee $(BENCH)/log-store.txt; fi
	$(KTLOG) bench audit | tee $(BENCH)/audit.txt

# Faults, 10,000 of them, and every call, every two in a row, every system call, stored object and older part once, in
# each way: five hours on two quiet cores.
# What needs root (loop devices) or strace says so where it is absent, and is skipped. Last, 10,000 runs of an honest
# log under bad weather, of which the auditor must accuse none. See docs/reliability.md.
FAULTS_SEED ?= 1
faults:
	$(PYTHON) -m tests.faults --count 10000 --seed $(FAULTS_SEED) --markdown
	$(PYTHON) -m tests.faults --each --count 100000 --kinds call,pair,restored,flipped,syscall --seed $(FAULTS_SEED) --markdown
	$(PYTHON) -m tests.liars --count 10000 --seed $(FAULTS_SEED)

# Other implementations, against ours: their Go modules are fetched here, and built by the tests. Two minutes the first
# time, half a minute then. See docs/interop.md.
interop:
	for module in tessera torchwood; do (cd tests/interop/go/$$module && go list -deps . tool >/dev/null); done
	KTLOG_TESTS_NEED="go ssh-agent" $(PYTHON) -m pytest -q -m interop tests/interop
