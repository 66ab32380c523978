"""What newer releases of PyTorch have and the oldest supported one (2.6) lacks: each is None where it is missing.

Nothing else in this package uses API that is newer than PyTorch 2.6, so what an old release can't do is said here, and
a test takes these names away (tests/versions).
"""

from __future__ import annotations

from typing import Any

import torch

# 2.7: the type of shared exponents. Older releases read no such tensor from a file.
float8_e8m0fnu: torch.dtype | None = getattr(torch, "float8_e8m0fnu", None)

# 2.9: a momentum that is made orthogonal. Without it, the rule is handed over as an optimizer of this package.
Muon: Any = getattr(torch.optim, "Muon", None)
