"""Small real inputs that every test may use, and a cache folder that no test shares with the user."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Stores and calibrations of a test stay its own; the calibration is a fixed one, so that no test measures."""
    from frostline.plan import machine

    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(machine, "_measure", lambda: MACHINE)
    return


def _machine():
    from frostline.plan.machine import Machine

    return Machine(
        name="test", cores=2, fp32_gflops=100.0, bf16_gflops=50.0, memory_gb_per_s=10.0, disk_write_gb_per_s=1.0, disk_read_gb_per_s=2.0
    )


MACHINE = _machine()


@pytest.fixture(scope="session")
def digit_arrays():
    """scikit-learn's handwritten digits: uint8 (rows, 8, 8) and their labels, 300 rows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:300] * 15.9).astype(np.uint8), digits.target[:300]


@pytest.fixture
def digits(digit_arrays):
    """The digits as a prepared Dataset."""
    import frostline as fl

    return fl.prepare(digit_arrays, seed=0)


@pytest.fixture
def texts():
    """A tiny text dataset that a small network can learn: the label is in the words."""
    import frostline as fl

    words = {
        "好": ["味道 很好", "非常 满意", "the food is good", "really great service"],
        "坏": ["太 难吃", "很 失望", "the food is bad", "awful slow service"],
    }
    rows = [
        (f"{text} number {i}" + " and so on" * (i % 7), label)
        for label, options in words.items()
        for i in range(40)
        for text in [options[i % 4]]
    ]
    return fl.prepare(rows, task="text-classification", seed=0)
