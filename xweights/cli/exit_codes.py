"""Exit codes of commands, and the messages for errors."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

DIFFERENT = 1
WRONG = 2
INTERRUPTED = 130  # the status that shells report for a program that Ctrl-C ended


class Commands(TyperGroup):
    """The group of all commands: a user error is a message and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted: no file was changed", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of the pipe has closed it; typer handles this
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
