# make demo | test | lab | notebooks | lint: each makes .venv first when it is missing or older than the project's files.
PYTHON ?= python3
VENV ?= .venv
OUT ?= outputs/demo
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export GOMP_SPINCOUNT ?= 3000
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

# Without a GPU: the pinned CPU build of torch, since PyPI's default brings gigabytes of CUDA. With one: pip's own choice.
ifeq ($(shell command -v nvidia-smi),)
CONSTRAINTS ?= constraints.txt
MINIRODIN_PRESET ?= smoke
else
CONSTRAINTS ?=
MINIRODIN_PRESET ?= small
endif
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: help install demo test lab notebooks lint clean
help:
	@sed -n 1p Makefile

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/minirodin demo --out $(OUT)

test: $(STAMP)
	MINIRODIN_PRESET=smoke MINIRODIN_PROGRESS=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(NOTEBOOKS) \
	  -n $(WORKERS) --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout=300

lab: $(STAMP)
	MINIRODIN_PRESET=$(MINIRODIN_PRESET) $(BIN)/jupyter lab --notebook-dir=. notebooks

notebooks: $(STAMP)
	@for n in $(NOTEBOOKS); do echo "$$n ($(MINIRODIN_PRESET))"; \
	  MINIRODIN_PRESET=$(MINIRODIN_PRESET) $(BIN)/jupyter nbconvert --log-level=WARN --to notebook --execute --inplace \
	    --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.store_widget_state=False "$$n" || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .

clean:
	rm -rf outputs .pytest_cache .ruff_cache build *.egg-info

$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python 3.10 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "no venv module: apt install python3-venv"; exit 1; }
ifneq ($(CONSTRAINTS),)
	$(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) -c $(CONSTRAINTS) --no-deps torch torchvision
endif
	$(PIP) $(addprefix -c ,$(CONSTRAINTS)) -e ".[dev]"
	@touch $@
