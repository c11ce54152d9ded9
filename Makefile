# Trainyard: one command brings the platform up. `make help` lists the others.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.ONESHELL:

# Which site: a folder below inventory/.
SITE ?= local
# Any Python from 3.11 on makes the tool environment.
PYTHON ?= python3
# What `make molecule` runs.
SCENARIO ?= local server nodes
# More for ansible-playbook, e.g. ARGS="--check --diff" or ARGS="-e clearml_agent_force_restart=true".
ARGS ?=

ROOT := $(CURDIR)
BUILD := $(ROOT)/build
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
INVENTORY := $(ROOT)/inventory/$(SITE)
VAULT := $(INVENTORY)/group_vars/all/vault.yml
VAULT_PASSWORD := $(INVENTORY)/.vault_password
# Before a playbook: is there such a site, and can Ansible read it?
CHECK_SITE = $(BIN)/python ansible/tools/check_site.py -- '$(subst ','\'',$(SITE))'
SITE_FILE := $(BUILD)/site-$(SITE).json
STAGES := $(BUILD)/stages.json

export ANSIBLE_CONFIG := $(ROOT)/ansible/ansible.cfg
export PATH := $(BIN):$(PATH)
# uv asks the system's authorities too, so that a site's own CA counts.
export UV_SYSTEM_CERTS := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Given to playbooks alone: a linter needs no vault, and a fresh clone has none.
VAULT_ENV = env ANSIBLE_VAULT_PASSWORD_FILE=$(VAULT_PASSWORD)
PLAYBOOK = $(VAULT_ENV) $(BIN)/ansible-playbook -i $(INVENTORY)
STAGE = $(BIN)/python ansible/tools/stage.py --file $(STAGES)

.PHONY: help
help:
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	printf '\n%s\n' "Variables: SITE=local (a folder below inventory/)  ARGS='--check --diff'  CONFIRM=yes  FORCE=yes  HOSTS=no  JSON=yes"

##@ Operate a site

.PHONY: up
up: ## bring the platform up and train something real on it
	@mkdir -p $(BUILD)
	rm -f $(STAGES)
	started=$$(date +%s.%N)
	$(MAKE) tools
	$(STAGE) --record tools --since "$$started"
	$(MAKE) deploy
	$(MAKE) verify

.PHONY: preflight
preflight: tools known-site ## find the inventory's mistakes and what its hosts lack, change nothing (HOSTS=no: ask no host)
	@$(MAKE) secrets
	$(PLAYBOOK) ansible/$(if $(filter no,$(HOSTS)),check_inventory.yml,preflight.yml) $(ARGS)

.PHONY: deploy
deploy: tools known-site ## run the playbook for SITE, without the check at the end
	@mkdir -p $(BUILD)
	$(MAKE) secrets
	$(STAGE) --playbook -- $(PLAYBOOK) ansible/site.yml $(ARGS)

.PHONY: secrets
secrets: tools known-site ## generate what is missing of the site's secrets
	@test -e $(VAULT_PASSWORD) || test -e $(VAULT) || (umask 077; $(BIN)/python -c 'import secrets; print("v" + secrets.token_urlsafe(32))' > $(VAULT_PASSWORD))
	test -e $(VAULT_PASSWORD) || { echo "$(VAULT) is there, but $(VAULT_PASSWORD) is not: put it back, or delete the first to start with new secrets" >&2; exit 1; }
	$(STAGE) --run secrets -- $(PLAYBOOK) ansible/secrets.yml

.PHONY: site
site: tools ## NAME=team: make a site of your own from inventory/example, with all its secrets
	@$(BIN)/ansible-playbook -i localhost, ansible/new_site.yml -e '{"new_site_name": "$(NAME)"}'

.PHONY: vault
vault: tools known-site ## edit the site's secrets: passwords of people, tokens; what is deleted is generated again
	@test -e $(VAULT) || { echo "the site $(SITE) has no secrets yet: run make secrets SITE=$(SITE)" >&2; exit 1; }
	$(VAULT_ENV) $(BIN)/ansible-vault edit $(VAULT)

.PHONY: users
users: tools known-site ## write each person's clearml.conf into inventory/SITE/users/ (after deploy)
	@$(PLAYBOOK) ansible/users.yml $(ARGS)

.PHONY: login
login: tools known-site ## show the address, the login and its password
	@$(BIN)/python ansible/tools/login.py --site-file $(SITE_FILE) --vault-file $(VAULT) --vault-password-file $(VAULT_PASSWORD)

.PHONY: verify
verify: tools known-site ## submit the example training, wait for it, read everything back
	@test -e $(SITE_FILE) || { echo "the site $(SITE) is not deployed from here: run make up SITE=$(SITE)" >&2; exit 1; }
	$(BIN)/python ansible/tools/verify.py --site-file $(SITE_FILE) --stages $(STAGES) --vault-file $(VAULT) --vault-password-file $(VAULT_PASSWORD)

.PHONY: status
status: tools known-site ## show what is free: workers, their experiments, queues (JSON=yes: as JSON)
	@mkdir -p $(BUILD)
	rm -f $(BUILD)/status-$(SITE).json $(BUILD)/status-$(SITE).txt
	said=$$($(PLAYBOOK) ansible/status.yml $(ARGS) 2>&1) || { echo "$$said" >&2; exit 1; }
	cat $(BUILD)/status-$(SITE).$(if $(filter yes,$(JSON)),json,txt)

.PHONY: audit
audit: tools-dev known-site ## the same tests of hosts as molecule's, against the live SITE (it changes nothing, and trains once)
	@$(VAULT_ENV) $(BIN)/pytest tests/infra/local tests/infra/server/test_stack.py --ansible-inventory=$(INVENTORY)

.PHONY: nodes
nodes: tools known-site ## all that nodes need, from Docker to workers: ARGS="-l gpu-07" adds or updates one
	@$(PLAYBOOK) ansible/nodes.yml $(ARGS)

.PHONY: drain
drain: tools known-site ## ARGS="-l gpu-07": let a node's experiments end, then stop its workers
	@$(PLAYBOOK) ansible/drain.yml $(ARGS)

.PHONY: undrain
undrain: tools known-site ## ARGS="-l gpu-07": put a drained node back to work
	@$(PLAYBOOK) ansible/undrain.yml $(ARGS)

.PHONY: remove-node
remove-node: tools known-site ## ARGS="-l gpu-07": drain a node, leave nothing of it, and end all logins: its token must not work on
	@$(PLAYBOOK) ansible/remove_node.yml $(ARGS)
	$(PLAYBOOK) ansible/end_logins.yml

.PHONY: end-logins
end-logins: tools known-site ## end every login at once, after a token, a notebook or a node was lost; trainings go on
	@$(PLAYBOOK) ansible/end_logins.yml

.PHONY: cache-warm
cache-warm: tools known-site ## ARGS="-l gpu-07 -e datasets=kitti@1.4.0": fetch datasets into nodes' caches beforehand
	@$(PLAYBOOK) ansible/cache_warm.yml $(ARGS)

.PHONY: images
images: tools known-site ## rebuild what changed of the images, share and take them (ARGS="-e perception_images_release=20261124": go back)
	@$(PLAYBOOK) ansible/images.yml $(ARGS)

.PHONY: registry-gc
registry-gc: tools known-site ## free the disk of the site's registry of deleted images (it is stopped meanwhile)
	@$(PLAYBOOK) ansible/images.yml -l clearml_registry -e image_registry_collect_garbage=true $(ARGS)

.PHONY: sbom
sbom: tools-dev ## IMAGE=trainyard/perception:3.11-cpu: list all its packages, and known vulnerabilities, into build/sbom/
	@$(BIN)/python ansible/tools/sbom.py --folder $(BUILD)/sbom $(or $(IMAGE),trainyard/perception:3.11-cpu)

.PHONY: down
down: tools known-site ## stop everything, keep all data (FORCE=yes: even running experiments)
	@$(PLAYBOOK) ansible/down.yml $(if $(filter yes,$(FORCE)),-e clearml_agent_force_restart=true) $(ARGS)

.PHONY: destroy
destroy: tools known-site ## show what goes and what stays, ask, remove containers, settings and data (CONFIRM=yes: without asking)
	@$(PLAYBOOK) ansible/destroy.yml $(if $(CONFIRM),-e destroy_confirm=$(CONFIRM)) $(ARGS)

##@ Develop Trainyard

.PHONY: lint
lint: tools-dev ## every linter, on everything
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy
	$(BIN)/mypy agents/*.py ansible/tools/*.py tests/e2e/*.py
	$(BIN)/mypy docker/*.py docker/locks/*.py tests/perception/*.py
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline
	git ls-files -z -- '*.sh' .ci/run | xargs -0 -r $(BIN)/shellcheck
	git ls-files -z -- '*Dockerfile*' | grep -zv dockerignore | xargs -0 -r $(BIN)/hadolint

.PHONY: unit
unit: tools-dev ## unit tests
	@$(BIN)/pytest --numprocesses 2 --dist loadfile tests/unit

.PHONY: e2e
e2e: tools-dev browser ## real SDK, agent, clearml-data and browser on a server of its own (needs the images)
	@$(BIN)/pytest tests/e2e

.PHONY: perception
perception: tools-dev known-site ## the images for experiments: build what Debian alone can give, test them, and that builds are reproducible
	@$(PLAYBOOK) ansible/images.yml -l localhost -e @tests/perception/matrix.yml
	$(BIN)/pytest tests/perception

.PHONY: molecule
molecule: tools-dev ## the roles on test hosts: check, converge, idempotence, verify (SCENARIO=local, server or nodes)
	@for scenario in $(SCENARIO)
	do
		lab=lab$$([ "$$scenario" = local ] || echo "-$$scenario")
		$(MAKE) secrets SITE=$$lab
		(cd ansible && ANSIBLE_VAULT_PASSWORD_FILE=$(ROOT)/inventory/$$lab/.vault_password $(BIN)/molecule test --scenario-name $$scenario)
	done

.PHONY: idempotence
idempotence: tools known-site ## a second run of the playbook must change nothing
	@mkdir -p $(BUILD)
	$(PLAYBOOK) ansible/site.yml | tee $(BUILD)/second-run.log
	! grep -E 'changed=[1-9]|failed=[1-9]|unreachable=[1-9]' $(BUILD)/second-run.log

.PHONY: bench
bench: tools-dev ## print the benchmark tables (needs a deployed site)
	@$(BIN)/python tests/bench/bench_lite.py
	$(BIN)/python tests/bench/bench_start.py
	$(BIN)/python tests/bench/bench_nodes.py
	$(BIN)/python tests/bench/bench_images.py

.PHONY: test
test: ## lint, unit, up, a second run, images, e2e: what CI runs
	@$(MAKE) lint
	$(MAKE) unit
	$(MAKE) up
	$(MAKE) idempotence
	$(MAKE) perception
	$(MAKE) e2e

.PHONY: test-all
test-all: ## test, then molecule and the benchmarks
	@$(MAKE) test
	$(MAKE) molecule
	$(MAKE) bench

# UPGRADE= keeps what the locks have and adds or removes only what docker/groups asks for.
UPGRADE ?= --upgrade
# An index with CPU builds of torch, e.g. https://download.pytorch.org/whl/cpu: images of variant cpu get them instead of the CUDA ones.
TORCH_CPU_INDEX ?=
PIP_COMPILE = $(BIN)/uv pip compile --quiet $(UPGRADE) --python-platform x86_64-manylinux_2_28 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

.PHONY: lock
lock: tools-dev ## resolve every lock file anew and show what changed (UPGRADE= keeps the versions, ONLY="3.11-cpu ..." does some)
	@if [ -z "$(ONLY)" ]; then
		$(BIN)/uv lock $(UPGRADE)
		$(BIN)/uv export --quiet --frozen --package trainyard-lite --no-emit-workspace --no-dev --no-header --output-file lite/requirements.txt
		$(PIP_COMPILE) --python-version 3.11 agents/requirements.in --output-file agents/requirements.txt
		$(PIP_COMPILE) --python-version 3.8 docker/locks/uv.in --output-file docker/locks/uv.txt
	fi
	for python in 3.8 3.9 3.10 3.11 3.12 3.13
	do
		for variant in cpu cuda
		do
			[ -z "$(ONLY)" ] || [[ " $(ONLY) " == *" $$python-$$variant "* ]] || continue
			index=()
			if [ "$$variant" = cpu ] && [ -n "$(TORCH_CPU_INDEX)" ]; then
				index=(--extra-index-url "$(TORCH_CPU_INDEX)" --index-strategy unsafe-best-match)
			fi
			$(PIP_COMPILE) "$${index[@]}" --python-version "$$python" docker/groups/*.in --output-file "docker/locks/$$python-$$variant.txt" ||
				{ echo "docker/locks/$$python-$$variant.txt is as it was: uv says above which packages do not fit together (docs/images.md)" >&2; exit 1; }
		done
	done
	$(BIN)/python docker/locks/changes.py

.PHONY: known-site
known-site: tools
	@$(CHECK_SITE)

.PHONY: browser
browser: # for the tests of the page; asked each time, so that it is tried again where it failed before
	@bash ansible/tools/browser.sh

.PHONY: tools
tools: $(VENV)/.tools-main ## prepare .venv with what deploys
	@:

.PHONY: tools-dev
tools-dev: $(VENV)/.tools-dev ## prepare .venv with what tests too
	@:

$(VENV)/.tools-main $(VENV)/.tools-dev: $(VENV)/.tools-%: pyproject.toml uv.lock client/pyproject.toml lite/pyproject.toml ansible/tools/bootstrap.sh
	@PYTHON=$(PYTHON) bash ansible/tools/bootstrap.sh $(VENV) $*
