# Two commands matter most: `make demo` and `make test`. See `make help`.

# Cluster provider (local, kind, lab) and number of nodes.
PROVIDER ?= local
NODES ?= 2
export PROVIDER NODES

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help demo test lab-test cluster cluster-down images bench lint generate tools

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PROVIDER=local|kind|lab (now $(PROVIDER)), NODES=N (now $(NODES))'

demo: ## Start a cluster, apply a VSE, and show it boot to its login prompt
	@hack/demo

test: ## Run every test: unit, property, API server, and end to end with real guests
	@hack/test

lab-test: ## Run the scenarios that need bare-metal hosts, on virtual ones
	@hack/lab-test

# The disks of lab hosts are made with the images in them: unpacked there, they take many minutes.
cluster: $(if $(filter lab,$(PROVIDER)),images)
cluster: ## Start a cluster; its kubeconfig is .cluster/kubeconfig
	@hack/cluster up

cluster-down: ## Stop the cluster and remove all it left
	@hack/cluster down

images: tools ## Build the OCI archives, in .build/images
	@$(CARGO) xtask images

bench: ## Measure the running cluster, or with PROVIDER=lab our VMM beside QEMU
	@hack/bench

lint: ## Check formatting, lints, licences, chart, scripts, generated files
	@hack/lint

generate: ## Regenerate what is generated from the API types
	@$(CARGO) xtask generate

tools: ## Install and build what is missing
	@hack/tools
