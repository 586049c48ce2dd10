# Every target does its own set-up; a second call starts at once. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book pdf sphinx test lint notebooks serve lock clean

# The interpreter that creates .venv: make PYTHON=python3.12 book
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
STAMP := .venv/.installed
# What the built pages depend on, apart from what the runner writes below book/.
SOURCES := book llmpp_core llmpp_book _config.yml requirements.lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

book: $(STAMP) ## run every notebook (smoke profile, CPU) and build _build/html/index.html
	$(BIN)/llmpp run
	@# Pages quote each other's numbers, so a change anywhere builds them all; a failed build leaves no checksum behind.
	@sum=$$(find $(SOURCES) -type f ! -path '*/__pycache__/*' ! -path '*/.ipynb_checkpoints/*' ! -path 'book/generated/api/*' -exec cksum {} + | LC_ALL=C sort | cksum); \
	if [ -f _build/html/index.html ] && [ "$$sum" = "$$(cat _build/.checksum 2>/dev/null)" ]; then echo "The pages are up to date."; else \
		rm -rf _build/.checksum _build/.doctrees _build/html _build/jupyter_execute; \
		$(BIN)/jupyter-book build book -W --keep-going -q; \
		echo "$$sum" > _build/.checksum; \
	fi
	@echo "The book is at _build/html/index.html (make serve shows it in a browser)."

# All pages as one, printed by a browser without a window.
pdf: book ## print the whole book into _build/llmpp.pdf; needs Chromium
	@browser=$${CHROMIUM:-$$(command -v chromium chromium-browser google-chrome google-chrome-stable | head -n 1 || true)}; \
	if [ -z "$$browser" ]; then echo "No Chromium on the PATH; on Debian and Ubuntu: apt install chromium. Or name one: make pdf CHROMIUM=…" >&2; exit 1; fi; \
	$(BIN)/python -m sphinx -b singlehtml -W --keep-going -q -d _build/.single book _build/single; \
	"$$browser" --headless --no-sandbox --disable-gpu --virtual-time-budget=120000 --no-pdf-header-footer \
		--print-to-pdf="$(CURDIR)/_build/llmpp.pdf" "file://$(CURDIR)/_build/single/index.html" 2> _build/pdf.log || { cat _build/pdf.log >&2; exit 1; }
	@echo "The book is at _build/llmpp.pdf."

# book/conf.py reads what both builds need from _config.yml: the way on if jupyter-book 1 is given up.
sphinx: $(STAMP) ## build the same pages by plain Sphinx, into _build/sphinx/
	$(BIN)/llmpp run
	rm -rf _build/sphinx
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d _build/.sphinx book _build/sphinx

# Tests move to a worker that is idle, so that no long file is the tail; the cells of a notebook stay together and in order. Committed
# outputs are compared with the pages by a test; nbval runs the pages a second time.
test: book ## run pytest, and every notebook a second time
	@status=0; mkdir -p _build/test; \
	check() { name=$$1; shift; echo "== $$name"; $(BIN)/pytest --color=no -n auto --maxprocesses 8 "$$@" 2>&1 | tee "_build/test/$$name.txt" || status=1; }; \
	check tests --dist worksteal tests; \
	check fresh-notebooks --dist loadfile --nbval book/notebooks; \
	echo; for name in tests fresh-notebooks; do echo "$$name"; tail -n 1 "_build/test/$$name.txt"; done; \
	exit $$status

lint: $(STAMP) ## ruff (rules and format), mypy, who imports whom, and how much there is
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	$(BIN)/python benchmarks/rooms.py > /dev/null

notebooks: $(STAMP) ## run every notebook and store the outputs in notebooks/, the ones to commit
	$(BIN)/llmpp run --update

serve: ## show the built book at http://127.0.0.1:8000 (PORT=… for another port)
	@test -f _build/html/index.html || { echo "There is no book yet: run make book." >&2; exit 1; }
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

# pip installs torch's own CUDA packages where torch asks for them; a CPU build asks for none, so the lock names none. A folder
# of local builds is left out of it, since their version labels are not the index's.
lock: ## resolve pyproject.toml again into requirements.lock
	@work=$$(mktemp -d); trap 'rm -rf "$$work" requirements.lock.new' EXIT; \
	$(PYTHON) -m venv "$$work/venv"; \
	"$$work/venv/bin/pip" install --quiet uv; \
	env -u UV_FIND_LINKS "$$work/venv/bin/uv" pip compile pyproject.toml --quiet --extra test --extra lab --universal --fork-strategy fewest --python-version 3.11 \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links | sed -E '/^(nvidia-|cuda-|triton)/d' > requirements.lock.new; \
	mv requirements.lock.new requirements.lock

clean: ## remove everything that was built; .venv stays
	rm -rf _build book/notebooks book/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The stamp is written last, so that a set-up that failed half-way is done again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, and $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 book")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
