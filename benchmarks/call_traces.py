"""Print which files a call enters, and how often it goes from one to another: `python benchmarks/call_traces.py`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

import xweights as xw

ROOTS = ("xweights", "xweights_torch", "xweights_keras", "xweights_tensorflow", "xweights_jax")


class Trace:
    """The files of this project that a call enters, in order, and the number of calls of functions in them."""

    def __init__(self) -> None:
        self.path: list[str] = []
        self.calls = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        # Code at the top of a module is an import, not a part of the call.
        if event == "call" and module.partition(".")[0] in ROOTS and frame.f_code.co_name != "<module>":
            self.calls += 1
            if not self.path or self.path[-1] != module:
                self.path.append(module)

    @property
    def files(self) -> list[str]:
        """Each file once, in the order in which they are entered first."""
        return list(dict.fromkeys(self.path))


def trace(call: Callable[[], Any]) -> Trace:
    """Run a call and return what it enters."""
    seen = Trace()
    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def cases() -> dict[str, Callable[[], Any]]:
    """Return the calls that docs/architecture.md walks through; each has run before, as in a script that repeats it."""
    import keras
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    x = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    model.fit(x, np.zeros((8, 2), np.float32), verbose=0)
    path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    xw.save(network, path)
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    def hold() -> None:
        xw.hold(model, xw.Clip(-1, 1), where="*/kernel").release()

    return {
        'clip(torch, -1, 1, where="*/kernel")': lambda: xw.clip(network, -1, 1, where="*/kernel"),
        "set_params(torch, path)": lambda: xw.set_params(twin, path),
        "hold(fitted Keras model) and release": hold,
        "port(Keras, torch, sample=x)": lambda: xw.port(model, twin, sample=x),
    }


def main() -> None:
    """Print a line for each call, and with `-v` the files."""
    for name, call in cases().items():
        call()
        seen = trace(call)
        print(f"{name:40} files {len(seen.files):3}   changes of file {len(seen.path):4}   calls {seen.calls:5}")
        if "-v" in sys.argv:
            print("    " + " > ".join(seen.files))


if __name__ == "__main__":
    main()
