# Every target makes .venv itself when it is missing or out of date, and only then.
# Another Python: make book PYTHON=python3.12

.POSIX:

PYTHON = python3
PORT = 8000
ENV = .venv/.ready
# Compiled modules are kept, whatever the machine says: pip compiles none, and a process that has
# to compile torch, transformers and peft for itself starts 10 s later.
RUN = PYTHONDONTWRITEBYTECODE= .venv/bin/python
MODEL = $(RUN) book/tools/progress.py "preparing the default model" -- \
	.venv/bin/python -m xb_lite fetch

help:
	@echo "make book        run every notebook on this machine, then render the book"
	@echo "make html        render the book from the committed outputs, running nothing"
	@echo "make pdf         one PDF of the rendered book, with bookmarks (needs Chromium)"
	@echo "make slides      a deck for each chapter, with speaker notes, in _build/slides;"
	@echo "                 ARGS=00_start_here makes that one alone"
	@echo "make serve       show the rendered book at http://127.0.0.1:$(PORT)"
	@echo "make test        run the tests, in up to four processes with one thread each"
	@echo "make smoke       run every notebook with small sizes, two at a time, write nothing into the tree"
	@echo "make smoke XB_MODEL=NAME   the same on another model, by name, folder or hub id"
	@echo "make notebooks   run every notebook in place; commit the outputs afterwards"
	@echo "make check       check the committed notebooks and the rendered book (needs Chromium);"
	@echo "                 ARGS=--record keeps what it found for the status page"
	@echo "make reproduce   make the results that are missing; ARGS=\"--status\" says which are there"
	@echo "make colab       install the book on top of what Colab has, and run every notebook there"
	@echo "make address     give another public address: URL=https://github.com/NAME/REPO"
	@echo "make clean       remove _build (everything that was rendered or run there)"

$(ENV): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "The command $(PYTHON) is missing: install Python 3.11, 3.12 or 3.13."; exit 1; }
	@$(PYTHON) book/tools/environment.py

book: $(ENV)
	@$(MODEL)
	@$(RUN) book/tools/execute.py --into _build/executed
	@$(RUN) book/tools/render.py --notebooks _build/executed

html: $(ENV)
	@$(RUN) book/tools/render.py

test: $(ENV)
	@$(MODEL)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

notebooks: $(ENV)
	@$(MODEL)
	@$(RUN) book/tools/execute.py --in-place

smoke: $(ENV)
	@$(RUN) book/tools/check_notebooks.py
	@$(MODEL)
	@$(RUN) book/tools/execute.py --into _build/smoke --profile smoke --at-once 2

check: $(ENV)
	@$(RUN) book/tools/check_notebooks.py
	@$(RUN) book/tools/check_book.py $(ARGS)
	@$(RUN) book/tools/measure.py $(ARGS)

reproduce: $(ENV)
	@$(RUN) -m xb_lite reproduce $(ARGS)

colab: $(ENV)
	@$(RUN) book/tools/colab.py $(ARGS)

address: $(ENV)
	@$(RUN) book/tools/address.py "$(URL)"

pdf: html
	@$(RUN) book/tools/pdf.py

slides: $(ENV)
	@$(RUN) book/tools/slides.py $(ARGS)

serve: $(ENV)
	@test -f _build/html/index.html || { echo "There is no rendered book yet: run make book or make html first."; exit 1; }
	@echo "The book is at http://127.0.0.1:$(PORT) (Ctrl-C ends it)"
	@$(RUN) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean:
	rm -rf _build

.PHONY: help book html pdf slides test notebooks smoke check reproduce colab address serve clean
