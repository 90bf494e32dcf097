"""One thread is enough for models this small, and keeps the tests quick on a busy machine."""

import torch

torch.set_num_threads(1)
