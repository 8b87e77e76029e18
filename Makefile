# make book   the built book, in _build/html/index.html
# make test   lint, types, unit tests, doctests, and every notebook cell against its stored output
PYTHON ?= python3
BIN := .venv/bin
# The pages work on small matrices, where a second thread costs more than it brings; and one thread
# gives the same digits everywhere.
export OMP_NUM_THREADS ?= 1

.PHONY: book test pairs sweep benchmark clean

book: .venv/.installed
	$(BIN)/jupyter-book build . -W -n --keep-going

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --override-ini addopts= --nbval --nbval-current-env book

# Rewrites book/*.ipynb, with outputs, from book/*.md; only pages that changed, or whose lib did.
pairs: .venv/.installed
	$(BIN)/python -m lib.book.pages

# Recomputes the stored results that chapters with heavy settings read, from book/results/; what is
# there and still matches its code is left alone.
sweep: .venv/.installed
	$(BIN)/python -m lib.book.stored

benchmark: .venv/.installed
	$(BIN)/python -m pytest tests/benchmarks --override-ini addopts= --benchmark-columns=median,iqr,rounds

clean:
	rm -rf _build

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[book,sweep,cluster,test]'
	touch $@
