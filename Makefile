# Every target makes what it needs. `make quickstart` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-all style format bench clean

quickstart: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		training/pretrain.py --method relvit --output_dir outputs/quickstart

# Files in their order: sorted by the number of tests, those with few long ones would be left for one process at the end.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# With the exhaustive tests of faults, and every method where one stands for all.
test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench,faiss]"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/patchmix_passes.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/aps_sampling.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pw_self_head.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/isl_bank.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/patch_augmentation.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trainer_overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ema_and_clipping.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/views.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/knn.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf $(VENV) build dist *.egg-info outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment is made anew only when what it is made from changes.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev,viz,onnx]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/transformers4 \
		transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2  # for tests/hub/test_transformers_4.py only
	touch $@
