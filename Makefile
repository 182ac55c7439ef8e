# Everything a developer and CI call. `make` alone prints what there is.
SHELL := /bin/bash -o pipefail
export CGO_ENABLED ?= 0
ifeq ($(HOME),)
# The go command keeps its caches there. The shell takes it from passwd.
export HOME := $(shell echo ~)
endif
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOLS := $(CURDIR)/.build
PKGS = ./...

.DEFAULT_GOAL := help

.PHONY: help
help: ## print this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/cri-server and bin/cri-runtime (static)
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: fmt
fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

.PHONY: check
check: lint arch unit ## format, vet, lint, architecture and unit tests with fakes: no root, under a minute once built

.PHONY: lint
lint: $(TOOLS)/golangci-lint
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted (make fmt): $$out"; exit 1; }
	$(GO) vet $(PKGS)
	$(GO) vet -tags root $(PKGS)
	$(TOOLS)/golangci-lint run --allow-parallel-runners $(PKGS)

.PHONY: arch
arch:
	$(GO) test ./internal/arch

.PHONY: unit
unit:
	hack/gotest $(PKGS)

.PHONY: race
race: ## unit tests under the race detector
	CGO_ENABLED=1 hack/gotest -race $(PKGS)

.PHONY: test-root
test-root: build ## root tests, in namespaces and cgroups of their own
	hack/test-root

.PHONY: test
test: ## all of it, as CI does: check, race, root tests, demo (root; installs what it needs)
	hack/install-deps
	$(MAKE) check
	$(MAKE) race
	$(MAKE) test-root
	$(MAKE) demo
	$(MAKE) test-peers

.PHONY: test-peers
test-peers: build ## conformance suite and kubelet, when they are on PATH (root)
	hack/test-peers

.PHONY: demo
demo: build ## a pod of two containers, from nothing to nothing, in namespaces of its own (root)
	hack/demo

.PHONY: test-vm
test-vm: build ## root tests on cgroup v2 in a virtual machine: make test-vm KERNEL=6.12 (or 6.1)
	hack/vm/test $(or $(KERNEL),6.12)

.PHONY: test-systemd
test-systemd: build ## the systemd cgroup driver's tests, in a virtual machine whose init is systemd: make test-systemd KERNEL=6.12 (or 6.1)
	VM_INIT=systemd hack/vm/test $(or $(KERNEL),6.12)

.PHONY: test-arm64
test-arm64: ## the runtime's and the shim's tests on arm64, in a virtual machine: make test-arm64 KERNEL=6.12 (or 6.1)
	VM_KERNEL=$(or $(KERNEL),6.12) hack/vm/arm64

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .build

$(TOOLS)/golangci-lint: hack/tools/go.mod
	@mkdir -p $(TOOLS)
	cd hack/tools && GOFLAGS=-mod=mod $(GO) build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
