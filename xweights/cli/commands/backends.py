"""The command ``xweights backends``."""

from __future__ import annotations

from xweights.cli.options import Json
from xweights.cli.output import show_json, show_table


def backends(json: Json = False) -> None:
    """List the installed backends, and whether each loads.

    Loading imports the framework, so this takes a few seconds.
    """
    from xweights.core.registry import backends as list_backends
    from xweights.core.registry import installed_backends

    states = list_backends()
    if json:
        show_json(states)
        return
    values = installed_backends()
    show_table(["framework", "state", "object"], [[name, state, values[name]] for name, state in states.items()])
