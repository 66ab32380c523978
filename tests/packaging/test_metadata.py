"""What a package index and a reader of the repository are told: links, licence, citation, release notes."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import xweights

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
pytestmark = pytest.mark.skipif(not README.is_file(), reason="these files lie in the checkout, and this is none")


def pyproject() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def as_shown_on_a_package_index() -> str:
    """Return the README after the substitutions of pyproject.toml."""
    text = README.read_text(encoding="utf-8")
    for rule in pyproject()["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def without_code(text: str) -> str:
    """Return Markdown without its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def test_every_link_of_the_readme_leads_to_a_file_of_the_repository() -> None:
    links = re.findall(r"\]\(([^)]+)\)", without_code(README.read_text(encoding="utf-8")))
    inside = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert len(inside) > 10
    assert [link for link in inside if not (REPOSITORY / link).exists()] == []


def test_on_a_package_index_every_link_is_absolute_and_the_code_is_as_it_was() -> None:
    shown, urls = as_shown_on_a_package_index(), pyproject()["project"]["urls"]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", without_code(shown))
    assert [link for _, link in links if not link.startswith(("https://", "#"))] == []
    home = urls["Homepage"].removeprefix("https://github.com/")
    pictures = [link for mark, link in links if mark]
    assert pictures
    assert all(link.startswith(f"https://raw.githubusercontent.com/{home}/main/") for link in pictures)
    code = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    assert code.findall(shown) == code.findall(README.read_text(encoding="utf-8"))


def test_the_distribution_has_links_a_licence_and_a_long_description() -> None:
    said = metadata.metadata("xweights-nn")
    assert {line.partition(",")[0] for line in said.get_all("Project-URL") or []} >= {
        "Homepage", "Documentation", "Source", "Changelog", "Issues",
    }  # fmt: skip
    assert said["License-Expression"] == "Apache-2.0"
    assert said.get_all("License-File") == ["LICENSE"]
    assert said["Description-Content-Type"] == "text/markdown"
    assert "](docs/" not in (said.get_payload() or "")


def test_every_version_that_is_said_anywhere_is_the_version() -> None:
    version = pyproject()["project"]["version"]
    assert xweights.__version__ == version
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_says_the_extras_that_there_are() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    readme = README.read_text(encoding="utf-8")
    assert {extra for extra in extras if f"`[{extra}]`" not in readme} == set()
