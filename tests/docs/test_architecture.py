"""docs/architecture.md: its picture of the house is that of the import contracts, and every path it names exists."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "architecture.md"
CONTRACTS = REPOSITORY / ".importlinter"
BEGIN, END = "<!-- the picture: written by tests/docs/test_architecture.py -->", "<!-- end of the picture -->"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="only a checkout has the page")


def layers(contract: str) -> list[list[str]]:
    """The layers of a contract, highest first: the rooms in each don't import each other."""
    parser = configparser.ConfigParser()
    parser.read(CONTRACTS, encoding="utf-8")
    rows = parser[f"importlinter:contract:{contract}"]["layers"].split("\n")
    return [[name.strip("() ") for name in row.split("|")] for row in rows if row.strip()]


def forbidden(contract: str) -> list[str]:
    """The modules that a contract forbids."""
    parser = configparser.ConfigParser()
    parser.read(CONTRACTS, encoding="utf-8")
    return parser[f"importlinter:contract:{contract}"]["forbidden_modules"].split()


def picture() -> str:
    """The house in Mermaid: a box for each layer of the core, and the rooms of the two large backends beside it."""
    lines = ["```mermaid", "flowchart TD"]
    core = layers("rooms")
    for level, rooms in enumerate(core):
        names = "<br>".join(room.removeprefix("xweights.") for room in rooms)
        lines.append(f'    core{level}["{names}"]')
    lines += [f"    core{level} --> core{level + 1}" for level in range(len(core) - 1)]
    lines.append('    subgraph backend["xweights_torch, xweights_keras"]')
    rooms = layers("backend_rooms")
    for level, names_of_level in enumerate(rooms):
        lines.append(f'        backend{level}["{"<br>".join(names_of_level)}"]')
    lines += [f"        backend{level} --> backend{level + 1}" for level in range(len(rooms) - 1)]
    never = ", ".join(sorted(name.removeprefix("xweights.") for name in forbidden("backends_see")))
    lines += ["    end", "    core6 -. entry points .-> backend", f'    backend -- "never {never}" --> core2']
    return "\n".join([*lines, "```"])


def test_the_picture_is_that_of_the_contracts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    expected = f"{before}{BEGIN}\n{picture()}\n{END}{after}"
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected, "Fix: XWEIGHTS_WRITE_PAGE=1 pytest tests/docs"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_the_page_names_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:xweights|backends|tests|docs|examples|benchmarks)/[\w./{},*-]+)`", text)
    assert len(named) > 5
    homes = [REPOSITORY, REPOSITORY / "backends"]
    lost = [name for name in named if "{" not in name and not any(list(home.glob(name.rstrip("/"))) for home in homes)]
    assert lost == []
