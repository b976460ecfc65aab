import os

import torch


# Tiny tensors: more threads than one only wait for each other. Hub and datasets are never asked for anything.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
