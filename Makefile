# make book        the built book, in _build/html/index.html
# make pdf         the whole book in one file, _build/book.pdf, printed by Chromium
# make check       format, lint, types, import contracts, fast tests: the inner loop
# make test        check, the longer tests, and every notebook cell against its stored output
# make test-slow   each page alone in a fresh environment, real sweeps and kills, lowest versions,
#                  accessibility of the built pages
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2
# The pages work on small matrices, where a second thread costs more than it brings; and one thread
# gives the same digits everywhere.
export OMP_NUM_THREADS ?= 1

.PHONY: book pdf check lint test test-slow pairs sweep benchmark clean

book: .venv/.installed
	$(BIN)/jupyter-book build . -W -n --keep-going

CHROMIUM ?= $(or $(shell command -v chromium || command -v google-chrome || command -v chrome),chromium)
pdf: .venv/.installed
	$(BIN)/jupyter-book build . --builder singlehtml -n --keep-going
	cp _build/singlehtml/book/intro.html _build/singlehtml/book.html  # from where its paths lead
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --no-pdf-header-footer --timeout=600000 \
		--virtual-time-budget=300000 --print-to-pdf=_build/book.pdf _build/singlehtml/book.html

check: lint
	$(PYTEST) -m "not long and not slow"

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not slow"
	$(PYTEST) --override-ini addopts= --dist loadscope --nbval --nbval-current-env book

test-slow: .venv/.installed
	$(PYTEST) -m slow --durations 10

# Rewrites book/*.ipynb, with outputs, from book/*.md; only pages that changed, or whose lib did.
pairs: .venv/.installed
	$(BIN)/python -m lib.book.pages

# Recomputes the stored results that chapters with heavy settings read, from book/results/; what is
# there and still matches its code is left alone.
sweep: .venv/.installed
	$(BIN)/python -m lib.book.stored

benchmark: .venv/.installed
	$(BIN)/python -m lib.book.benchmarks

clean:
	rm -rf _build

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[book,sweep,cluster,test]'
	touch $@
