# A newcomer's two commands; each sets up .venv where it is missing or older than constraints.txt.
#   make demo    the whole benchmark on generated images: a few minutes on two CPU cores
#   make test    everything that .ci/run checks
#   make slurm-test    the demo through a real SLURM on this machine, as root (docs/clusters.md)
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
# PATH=FOLDER of `make new-dataset` names a folder. The programs are found as without it; where make hands its own
# variables to $(shell), the shell's default takes the place of the environment's PATH.
NEW_DATASET :=
ifeq ($(origin PATH) $(filter new-dataset,$(MAKECMDGOALS)),command line new-dataset)
export NEW_DATASET := $(value PATH)
unexport PATH
override PATH := $(shell echo "$$PATH")
endif
override export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test slurm-test new-dataset plan verify rehearse check-results export-run gpu-check
.DEFAULT_GOAL := demo

demo: .venv/.ready
	snakemake demo --cores 2
	@echo
	@grep -v '^Written: ' logs/report/demo.log 2>/dev/null || cat results/tables/demo.md
	@echo "What it shows: in so few steps cmb, not dcc, gains from the images without labels (docs/results.md)."
	@echo "Report: $(CURDIR)/results/report.html"

# $(call step,COMMAND): run it, and say which one failed.
step = @echo; echo "== $(1)"; $(1) || { echo "make test: failed: $(1)" >&2; exit 1; }

test: .venv/.ready
	$(call step,python -m tests.browser)
	$(call step,python -m tests.kubernetes)
	$(call step,OMP_NUM_THREADS=1 pytest -n 4 --dist loadfile --no-loadscope-reorder)

slurm-test: .venv/.ready
	python -m tests.slurm

# make new-dataset PATH=../mine: what a folder of your own images and masks holds, what is wrong with it, and its entry
# for params.yaml. WRITE=1 adds the entry.
new-dataset: .venv/.ready
	@python pipeline/new_dataset.py $(if $(NEW_DATASET),"$$NEW_DATASET",$(error Which folder? make new-dataset PATH=../mine)) \
	  $(if $(WRITE),--write)

# make plan GRID=camvid: what is done of a grid, and the hours and disk that the rest will take. With MEASURE=1 some
# steps are trained where no finished run is like it; with CARD=24 it says which recipes fit a GPU of 24 GiB.
plan: .venv/.ready
	@python pipeline/plan.py $(or $(GRID),$(error Which grid? make plan GRID=camvid)) $(if $(MEASURE),--measure) \
	  $(if $(CARD),--card $(CARD))

# make verify, or make verify DATASET="voc camvid": read prepared datasets again, file by file.
DATASET ?= $(notdir $(patsubst %/manifest.json,%,$(wildcard data/*/manifest.json)))
verify: .venv/.ready
	@bad=0; for name in $(DATASET); do python pipeline/verify.py $$name || bad=1; done; exit $$bad

# make check-results: every record under results/runs/, as a pull request is checked, and which ones are new.
check-results: .venv/.ready
	@python pipeline/check_results.py

# make export-run RUN=cmb/camvid-1_8/0: pack networks, history, predictions and record into one file.
export-run: .venv/.ready
	@python pipeline/export_run.py $(or $(RUN),$(error Which run? make export-run RUN=cmb/camvid-1_8/0))

# make rehearse, or make rehearse TABLE=paper-dcc-voc: the papers' tables in miniature, by both engines.
rehearse: .venv/.ready
	python -m tests.rehearsal $(if $(TABLE),--table $(TABLE))

# make gpu-check, or make gpu-check MINUTES=15: all that a GPU can show; the output is in gpu-check/.
gpu-check: .venv/.ready
	python -m benchmarks.gpu --minutes $(or $(MINUTES),9) --out gpu-check

.venv/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { \
	  echo "Python 3.11.4 or newer is needed, and $(PYTHON) is not: make PYTHON=python3.12 (or where yours lies)" >&2; \
	  exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
