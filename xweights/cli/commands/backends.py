"""``xweights backends``."""

from __future__ import annotations

from xweights.cli.options import Json
from xweights.cli.output import show_json, show_table


def backends(json: Json = False) -> None:
    """Say which backends are installed, and whether each loads.

    Loading imports the framework, so this takes a few seconds.
    """
    from xweights.core.registry import backends as states
    from xweights.core.registry import installed_backends

    found = states()
    if json:
        show_json(found)
        return
    values = installed_backends()
    show_table(["framework", "state", "object"], [[name, state, values[name]] for name, state in found.items()])
