"""Print which promises a backend keeps: ``python -m xweights.testing package.module:make_target``."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from typing import Any

from xweights.core import registry
from xweights.testing.conformance import DTYPES, check_conformance

_KNOWN = (*DTYPES, "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8", "bool")


def named(name: str) -> Any:
    """Return the object at ``package.module:attribute``."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise SystemExit(f"expected package.module:name\ngot:     {name}")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as wrong:
        raise SystemExit(f"{name} can't be imported\n{type(wrong).__name__}: {wrong}") from None


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0 if every promise is kept."""
    parser = argparse.ArgumentParser(prog="python -m xweights.testing", description=__doc__)
    parser.add_argument("factory", help="package.module:function that returns a fresh target; it may take a dtype")
    parser.add_argument("--backend", metavar="ROOT=MODULE:NAME", help="register a backend that no entry point names")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="those to try (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    sys.path.insert(0, "")
    if options.backend:
        root, _, name = options.backend.partition("=")
        registry.register(root, named(name))
    unknown = [name for name in options.dtypes.split(",") if name not in _KNOWN]
    if unknown:
        parser.error(f"--dtypes are some of {', '.join(_KNOWN)}\ngot: {', '.join(unknown)}")
    report = check_conformance(named(options.factory), options.dtypes.split(","))
    sys.stdout.write(f"{json.dumps(report.as_dict(), indent=2) if options.json else report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
