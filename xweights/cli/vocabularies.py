"""Read the tokens of a vocabulary from a file: a list, a mapping of tokens to rows, or a tokenizer of a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 256 << 20  # bytes


def read_vocabulary(name: str) -> dict[str, int]:
    """Return tokens and their rows: of a .txt file a token a line, of JSON a list, a mapping, or a tokenizer.json."""
    from xweights.cli.targets import missing_file_error
    from xweights.errors import ArgumentError

    path = Path(name)
    if not path.is_file():
        raise missing_file_error(path)
    if path.suffix not in (".txt", ".json"):
        raise _no_vocabulary(name, f"its ending is {path.suffix or 'missing'}")
    if path.stat().st_size > _LARGEST:
        raise ArgumentError(f"a vocabulary is no larger than 256 MB\ngot: {path.stat().st_size:,} bytes in {name!r}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return _rows_of(text.removesuffix("\n").split("\n"))
        return _tokens_in(json.loads(text))
    except (ValueError, RecursionError, LookupError, TypeError) as wrong:
        raise _no_vocabulary(name, f"{type(wrong).__name__}: {wrong}") from None


def _tokens_in(content: Any) -> dict[str, int]:
    """Return the tokens in JSON: those of the model in a tokenizer.json, and what was added to them."""
    if isinstance(content, list):
        return _rows_of(content)
    if not isinstance(content, dict) or not content:
        raise ValueError("neither a list of tokens nor a mapping of tokens to rows")
    if isinstance(content.get("model"), dict):
        found = content["model"]["vocab"]
        # Those of Unigram have a score each.
        rows = dict(found) if isinstance(found, dict) else _rows_of([pair[0] for pair in found])
        content = rows | {one["content"]: one["id"] for one in content.get("added_tokens", [])}
    if not all(type(row) is int for row in content.values()):
        raise ValueError("a row is a whole number")
    tokens: dict[str, int] = content
    return tokens


def _rows_of(tokens: list[Any]) -> dict[str, int]:
    rows = {token: row for row, token in enumerate(tokens) if isinstance(token, str)}
    if not rows or len(rows) < len(tokens):
        raise ValueError("a token comes twice, or is no text" if tokens else "it has no tokens")
    return rows


def _no_vocabulary(name: str, cause: str) -> Exception:
    from xweights.errors import ArgumentError

    fix = "json.dump(tokenizer.get_vocab(), file)"
    expected = "vocab.txt with a token a line, or JSON: a list, {token: row}, or a tokenizer.json"
    return ArgumentError(f"{name!r} is no vocabulary\ncause:    {cause:.200}\nexpected: {expected}\nFix: {fix}")
