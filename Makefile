# Everything a person does here, from a fresh Debian machine with a Rust toolchain: `make demo`, `make test`.

export PATH := $(PATH):/usr/sbin:/sbin
CARGO ?= cargo
BINARY = $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help build dist image manifests setup test test-istio test-kernels lint demo bench bench-check memory scale mesh-scale soak fuzz clean ebpf ebpf-check tier-mutants

help:
	@echo "make demo    see it work: namespaces, unmodified programs, live policy, metrics, latency (root shows most)"
	@echo "make test    set up what the tests need, then run all of them"
	@echo "make test-istio  only what runs against a real istiod (its first build takes minutes)"
	@echo "make lint    rustfmt, clippy and shellcheck, warnings denied"
	@echo "make dist    the binary as it is shipped: minutes more of building, a tenth less of CPU (target/dist/underpass)"
	@echo "make image   the container image with that binary (ARCHITECTURE=amd64|arm64), as an OCI archive in target/image"
	@echo "make manifests  deploy/manifests anew, from the Helm chart"
	@echo "make bench   side by side with no proxy, HAProxy and Envoy; writes bench/out/results.json"
	@echo "             SCENARIO=l4-rtt,l4-stream,l4-connect,l4-programs (or hbone-rtt,hbone-stream,hbone-connect; or http1,h2,grpc; or http1-secured)  SYSTEMS=direct,underpass-kernel,haproxy,envoy  ROUNDS=5"
	@echo "make memory  what a fresh proxy and 10 000 idle connections cost"
	@echo "make scale   10 000 services x 10 endpoints: load time, memory, updates under load"
	@echo "make mesh-scale  a node that takes 10 000 services and 100 000 workloads from a control plane: time, memory, CPU of a change"
	@echo "make ebpf    compile the eBPF programs anew (offload-ebpf/underpass.bpf.o is checked in); ebpf-check: compare"
	@echo "make fuzz    the parsers of what peers and istiod send, SECONDS_EACH=10 for each target (or RUNS_EACH=20000: always the same)"
	@echo "make tier-mutants   leave out one rule of the kernel tier after the other: the tests must notice (root)"
	@echo "make soak    the randomized tests of relay and kernel tier: 10 000 connections, 10 000 cycles, 1 000 stuck readers; ten minutes of HTTP without growth"
	@echo "make test-kernels  suites on Debian's 6.1 and 6.12 under QEMU, with and without packet loss (two hours, on a machine that does nothing else)"
	@echo "             KERNELS=\"6.1 6.12\"  SUITES=\"ebpf capture exactness kernel_tier\"  LINKS=\"clean|loss 1%\""

setup:
	@scripts/build-setup.sh

build: setup
	$(CARGO) build --release --locked -p underpass

dist: setup
	$(CARGO) build --profile dist --locked -p underpass

image: setup
	@PROFILE=$(or $(PROFILE),dist) scripts/image.sh $(or $(ARCHITECTURE),amd64)

manifests:
	@deploy/manifests.sh

test: build
	@scripts/test-setup.sh
	@scripts/istiod-setup.sh
	@scripts/envoy-setup.sh
	@scripts/h2spec-setup.sh
	@scripts/grpc-setup.sh
	@scripts/collector-setup.sh
	@scripts/deploy-setup.sh
	$(CARGO) test --workspace --locked

test-istio: build
	@scripts/test-setup.sh
	@scripts/istiod-setup.sh
	@scripts/deploy-setup.sh
	$(CARGO) test --locked -p underpass-tests --test istiod

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	shellcheck scripts/*.sh scripts/kernels/*.sh demo/*.sh deploy/*.sh .ci/run

demo: build
	@scripts/demo-setup.sh
	@demo/demo.sh

bench: setup
	@scripts/bench-setup.sh
	$(CARGO) build --release --locked -p underpass -p underpass-bench
	$(BINARY)/underpass-bench run --aa --hold-memory --underpass $(BINARY)/underpass
	$(BINARY)/underpass-bench check

memory scale mesh-scale: setup
	@scripts/bench-setup.sh
	$(CARGO) build --release --locked -p underpass -p underpass-bench
	$(BINARY)/underpass-bench $@ --underpass $(BINARY)/underpass

soak: build
	@scripts/test-setup.sh
	UNDERPASS_CYCLES=10000 $(CARGO) test --locked -p underpass-tests --test exactness -- --nocapture
	UNDERPASS_REQUESTS=100000 UNDERPASS_CHANGES=1000 UNDERPASS_DEATHS=200 $(CARGO) test --locked -p underpass-tests --test http -- \
		churn:: --nocapture
	UNDERPASS_CYCLES=10000 UNDERPASS_STUCK=1000 $(CARGO) test --locked -p underpass-tests --test kernel_tier -- \
		--nocapture --test-threads 1 --include-ignored
	@scripts/bench-setup.sh
	$(CARGO) build --release --locked -p underpass-bench
	$(BINARY)/underpass-bench soak --underpass $(BINARY)/underpass

test-kernels: build
	@scripts/test-setup.sh
	@scripts/test-kernels.sh

fuzz: setup
	scripts/fuzz.sh

ebpf:
	@scripts/ebpf-setup.sh
	scripts/ebpf-build.sh offload-ebpf/underpass.bpf.o

ebpf-check:
	@scripts/ebpf-setup.sh
	@fresh=$$(mktemp) && trap 'rm -f "$$fresh"' EXIT && scripts/ebpf-build.sh "$$fresh" && \
	if cmp "$$fresh" offload-ebpf/underpass.bpf.o; then \
		echo "ebpf-check: offload-ebpf/underpass.bpf.o is what its sources compile to"; \
	else \
		echo "ebpf-check: offload-ebpf/underpass.bpf.o is not what its sources compile to: make ebpf." \
			"($$(/usr/bin/rustc --version); $$(bpf-linker --version))"; exit 1; \
	fi

tier-mutants:
	@scripts/ebpf-setup.sh
	@scripts/tier-mutants.sh

clean:
	$(CARGO) clean
	rm -rf bench/out
