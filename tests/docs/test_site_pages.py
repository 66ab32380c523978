"""The pages of the site that say so run from top to bottom, and print what they show.

Such a page begins with `<!-- runs: keras, torch -->`, naming the packages its code needs. All its Python runs in one
namespace; a text block is what has been printed since the text block before it.
`<!-- not run: REASON -->` above a block leaves it out. XWEIGHTS_WRITE_PAGE=1 puts into the page what was printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from pathlib import Path

import pytest

import xweights as xw

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = re.compile(r"\A<!-- runs: ?([\w, ]*)-->\n")
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>python|text)(?: [^\n]*)?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGES = [
    str(page.relative_to(DOCS)) for page in sorted(DOCS.rglob("*.md")) if HEAD.match(page.read_text(encoding="utf-8"))
]

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="only a checkout has the pages")


def run_page(page: Path) -> list[tuple[re.Match[str], str]]:
    """Return each text block of the page, and what the code above it printed."""
    namespace: dict[str, object] = {"__name__": "page"}
    out = io.StringIO()
    shown = []
    for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
        if fence["kind"] == "text":
            shown.append((fence, out.getvalue().rstrip() + "\n"))
            out = io.StringIO()
        elif fence["why"] is None:
            with contextlib.redirect_stdout(out):
                exec(compile(fence["code"], page.name, "exec"), namespace)
    if out.getvalue():
        shown.append((fence, out.getvalue()))  # printed, and not shown: never equal to code
    return shown


@pytest.mark.parametrize("name", PAGES)
def test_the_page_prints_what_it_shows(name, tmp_path, monkeypatch) -> None:
    page = DOCS / name
    text = page.read_text(encoding="utf-8")
    packages = HEAD.match(text)[1].replace(",", " ").split()  # type: ignore[index]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)  # some write files
    shown = run_page(page)
    if os.environ.get("XWEIGHTS_WRITE_PAGE"):
        for fence, printed in reversed(shown):
            text = text[: fence.start("code")] + printed + text[fence.end("code") :]
        page.write_text(text, encoding="utf-8")
        return
    assert [fence["code"] for fence, _ in shown] == [printed for _, printed in shown]


def test_every_block_that_is_left_out_says_why() -> None:
    for name in PAGES:
        for fence in FENCE.finditer((DOCS / name).read_text(encoding="utf-8")):
            assert fence["why"] is None or len(fence["why"].split()) >= 3, name


def test_there_are_pages() -> None:
    assert len(PAGES) >= 10


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    listed = re.findall(r"^::: xweights\.(\w+)$", pages, re.MULTILINE)
    errors = re.findall(r"^##+ (\w+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*listed, *errors, "XweightsError", "testing"]) == sorted([*xw.__all__, "testing"])
    index = re.findall(r"\[`(\w+)`\]", (DOCS / "api/index.md").read_text(encoding="utf-8"))
    assert sorted(index) == sorted(listed)
