"""How a command ends: its exit status, and what is said of an error."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

DIFFERENT = 1
WRONG = 2
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


class Commands(TyperGroup):
    """The group of all commands: a mistake of the user's is a message and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted: no file was changed", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever read the output has seen enough; this is handled further up
        except OSError as wrong:
            named = f": {wrong.filename}" if wrong.filename is not None else ""
            typer.echo(f"error: {wrong.strerror or wrong}{named}", err=True)
            raise typer.Exit(WRONG) from None
        except Exception as wrong:
            from xweights.errors import XweightsError

            if not isinstance(wrong, XweightsError):
                raise
            typer.echo(f"error: {wrong}", err=True)
            raise typer.Exit(WRONG) from None
