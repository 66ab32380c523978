"""Entry points of installed packages, found in one look through the environment."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from xweights.core import entry_points as module
from xweights.core.entry_points import entry_points_of


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    module._find_all.cache_clear()
    yield
    module._find_all.cache_clear()


def install(folder: Path, name: str, text: str | None) -> None:
    """Put a package that registers what ``text`` says into a folder."""
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    if text is not None:
        (described / "entry_points.txt").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("group", ["backends", "layers", "models", "hubs"])
def test_they_are_those_that_the_standard_library_finds(group: str) -> None:
    expected = {point.name: point for point in entry_points(group=f"xweights.{group}")}
    assert entry_points_of(f"xweights.{group}") == expected


def test_other_packages_are_not_parsed_and_the_first_on_the_path_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "b", "plugin", "[console_scripts]\nrun = a:b\n\n[xweights.layers]\nmodels = second:rows\n")
    install(tmp_path / "b", "nothing", None)
    install(tmp_path / "a", "another", "[xweights.layers]\nmodels = first:rows\nmore = first:more\n")
    install(tmp_path / "a", "odd", "[some.group]\nnot an entry point at all\n")
    monkeypatch.setattr("sys.path", [str(tmp_path / "a"), str(tmp_path / "b")])
    found = entry_points_of("xweights.layers")
    assert {name: point.value for name, point in found.items()} == {"models": "first:rows", "more": "first:more"}
    assert entry_points_of("xweights.backends") == {}


def test_the_environment_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def distributions() -> Iterator[object]:
        looks.append(1)
        yield from ()

    monkeypatch.setattr("importlib.metadata.distributions", distributions)
    assert entry_points_of("xweights.layers") == entry_points_of("xweights.backends") == {}
    assert len(looks) == 1
