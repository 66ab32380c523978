"""The command line as ``python -m xweights``, for when its script isn't on the path."""

from __future__ import annotations

if __name__ == "__main__":
    from xweights.cli.app import main

    main()
