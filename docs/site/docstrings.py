"""How docstrings are shown: an Example section is a console session, and what a call raises is a section of its own."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Read `Example:` as the section that Google's style calls `Examples:`, and a role of Sphinx as a name in code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", EXAMPLE.sub("Examples:", obj.docstring.value))
