"""Time imports and command-line starts in whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from timing import Memory, Timing, compare

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax")


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    loaded = _python(f"import sys, xweights; print(*({{*{FRAMEWORKS!r}}} & sys.modules.keys()))").strip()
    if loaded:
        raise AssertionError(f"import xweights imports {loaded}")
    yield compare(
        "import xweights",
        "process",
        "-",
        partial(_python, "import xweights"),
        {"import numpy": partial(_python, "import numpy")},
        1.25,
        seconds=4 if quick else 12,
    )
    yield compare(
        "import xweights; xweights.clip",
        "process",
        "-",
        partial(_python, "import xweights; xweights.clip"),
        {"import numpy": partial(_python, "import numpy")},
        1.15,
        seconds=4 if quick else 12,
    )
    yield compare(
        "xweights --help",
        "process",
        "-",
        partial(_python, "from xweights.cli.app import app; app(['--help'])"),
        {"import numpy": partial(_python, "import numpy")},
        1.5,
        seconds=4 if quick else 12,
    )


# What pip installs is compiled already, whatever the variables of this shell say.
_COMPILED = tempfile.TemporaryDirectory(prefix="xweights_compiled_")
_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | {
    "PYTHONPYCACHEPREFIX": _COMPILED.name
}


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=_ENVIRONMENT)
    return run.stdout
