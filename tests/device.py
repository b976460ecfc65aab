"""Where the tests compute: on the CPU, or where `HF_SSL_TEST_DEVICE` says (`HF_SSL_TEST_DEVICE=cuda make test`)."""

import os

import torch


DEVICE = os.environ.get("HF_SSL_TEST_DEVICE", "cpu")

# The recorded numbers were computed in full float32.
torch.backends.cudnn.allow_tf32 = False
