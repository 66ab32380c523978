"""Exit codes of commands, and the messages for errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

DIFFERENT = 1
WRONG = 2
INTERRUPTED = 130  # the status that shells report for a program that Ctrl-C ended


class Commands(TyperGroup):
    """The group of all commands: a user error is a message and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        from xweights.cli.output import prepare_streams

        as_json = "--json" in (*getattr(ctx, "_protected_args", ()), *ctx.args)
        prepare_streams()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted", "no file was changed", "Interrupted", INTERRUPTED, as_json)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of the pipe has closed it; typer handles this
        except OSError as wrong:
            named = f": {wrong.filename}" if wrong.filename is not None else ""
            _say("error", f"{wrong.strerror or wrong}{named}", type(wrong).__name__, WRONG, as_json)
            raise typer.Exit(WRONG) from None
        except MemoryError as wrong:
            _say("error", f"the memory isn't enough\ncause: {wrong}", "MemoryError", WRONG, as_json)
            raise typer.Exit(WRONG) from None
        except Exception as wrong:
            from xweights.errors import XweightsError

            # click's, which newer versions of typer bring along under another name
            if as_json and hasattr(wrong, "format_message"):
                _say("error", wrong.format_message(), "UsageError", WRONG, as_json)
                raise typer.Exit(WRONG) from None
            if not isinstance(wrong, XweightsError):
                raise
            _say("error", str(wrong), type(wrong).__name__, WRONG, as_json)
            raise typer.Exit(WRONG) from None


def _say(what: str, text: str, kind: str, status: int, as_json: bool) -> None:
    from xweights.errors import shorten

    text = shorten(text)
    if not as_json:
        typer.echo(f"{what}: {text}", err=True)
        return
    import json

    # On stderr, as every error: standard output has the result or nothing.
    typer.echo(json.dumps({"error": {"type": kind, **split_message(text), "status": status}}, indent=2), err=True)


def split_message(text: str) -> dict[str, Any]:
    """Return the parts of a message: what is wrong, what was got and expected, and how to mend it."""
    lines: Sequence[str] = text.splitlines()
    fields: dict[str, Any] = {"message": text, "fact": lines[0] if lines else "", "problems": [], "fix": []}
    for line in lines[1:]:
        bare = line.strip()
        if bare.startswith("- "):
            fields["problems"].append(bare[2:])
        elif bare.startswith("Fix: "):
            fields["fix"].append(bare[5:])
        elif bare.startswith(("got: ", "expected: ")) and bare.partition(":")[0] not in fields:
            fields[bare.partition(":")[0]] = bare.partition(":")[2].strip()
    return fields
