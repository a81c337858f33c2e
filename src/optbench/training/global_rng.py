"""The global random generators that libraries draw from; our own code never does."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from optbench import rng


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed them for an epoch of a run, so that a resumed run draws what an undisturbed one does."""
    key = rng.key(seed, "third-party", epoch)
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key % 2**32)


def get_state() -> dict[str, Any]:
    """Return where they stand, loadable with weights_only."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "random": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], *rest),
    }


def set_state(state: dict[str, Any]) -> None:
    """Put them back to where `get_state` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["random"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
