# make demo: the whole story, from nothing.  make test: everything is checked.  The other targets: make help.
PYTHON ?= python3
RUN := .venv/bin/python
JOBS ?= 4
# Some machines set it for their containers: each of our many processes would compile all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test broker check tests pikas faults bench deploy imagenes clean

help:
	@echo "make demo      a private RabbitMQ, a producer, three workers, one killed: nothing is lost"
	@echo "make broker    a RabbitMQ of your own at localhost:5672; Ctrl+C stops it"
	@echo "make test      all checks and tests, on every RabbitMQ in RABBITMQ_BINS and the installed one"
	@echo "make check     what needs no RabbitMQ: ruff, mypy, unit tests"
	@echo "make pikas     what touches pika, on the oldest pika that is supported and on the newest pre-release"
	@echo "make faults    the fault matrix at full size, its table to tests/faults/TABLE.md"
	@echo "make bench     the figures of the README"
	@echo "make deploy    the compose files on a real Docker engine: containers killed, nothing lost"
	@echo "make imagenes  the pictures of the README"
	@echo "make clean     remove what these made"

demo: .venv/run
	@$(RUN) demo.py $(ARGS)

broker: .venv/run
	@exec $(RUN) -m tareas.lab.provide $(ARGS)

test: .venv/dev
	@date +%s >.venv/began
	$(RUN) -m tareas.lab.provide --install
	HYPOTHESIS_PROFILE=thorough $(MAKE) check
	$(MAKE) pikas
	$(MAKE) tests
	@echo "All of it in $$(( ($$(date +%s) - $$(cat .venv/began)) / 60 )) minutes: 20 on two cores are the most it may take."

check: .venv/dev
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/unit -n 2

# A test that passed only when it was run again is named at the end (-rR): it is a finding, not a success.
tests: .venv/dev
	$(RUN) -m pytest -q tests/integration tests/faults -n $(JOBS) --dist loadgroup --reruns 1 -rR --durations 15

# On the newest RabbitMQ only: the newest pika, that of .venv, meets them all. tests/conftest.py refuses another pika
# than the expected one. -k goes on with the second when the first fails.
pikas:
	$(MAKE) -k pika-1.3.2 pika-pre

PIKA_TESTS := tests/unit $(patsubst %,tests/integration/test_%.py,contract long_tasks stopping bodies retries)
pika-%: .venv/pika-% .venv/dev
	PYTHONPATH=$(CURDIR)/$< PIKA_EXPECTED=$$(basename $</pika-*.dist-info .dist-info | cut -c6-) RABBITMQ_NEWEST=1 \
	$(RUN) -m pytest -q $(PIKA_TESTS) -n $(JOBS) --dist loadgroup --reruns 1 -rR --durations 5

faults: .venv/dev
	$(RUN) -m tareas.lab.provide --install
	FAULTS=full FAULTS_TABLE=tests/faults/TABLE.md $(RUN) -m pytest tests/faults -n 2 --dist loadgroup -rA

bench: .venv/run
	$(RUN) -m bench $(ARGS)

# Docker Compose for real: needs an engine, and Compose 2.23.1 or newer.
deploy: .venv/dev
	DOCKER_TESTS=1 $(RUN) -m pytest tests/deploy

imagenes: .venv/run
	$(RUN) -m imagenes $(ARGS)

clean:
	rm -rf .venv .broker bench/.venv imagenes/.venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run: requirements.txt | .venv/made
	$(RUN) -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: requirements.txt requirements-dev.txt | .venv/made
	$(RUN) -m pip install -q --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@ .venv/run

.PRECIOUS: .venv/pika-%
.venv/pika-%: | .venv/made
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ $(if $(filter pre,$*),--pre "pika<2",pika==$*)

# Debian and Ubuntu keep venv in a package of its own.
.venv/made:
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || virtualenv -q -p $(PYTHON) .venv 2>/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "Installing the package python3-venv ..." && \
	  { apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install python3-venv >/dev/null; } && \
	  $(PYTHON) -m venv --clear .venv; } || \
	{ rm -rf .venv; echo "Python's venv is missing: on Debian or Ubuntu, sudo apt install python3-venv" >&2; exit 1; }
	@touch $@
