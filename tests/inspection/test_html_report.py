"""The HTML report makes no requests, escapes names, and sorts its tables in a real browser."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import xweights as xw
from xweights.inspection.html_report import page

pytest.importorskip("matplotlib")

EVIL = '<script>alert("x")</script>/kernel'
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("XWEIGHTS_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: `apt-get install chromium`, or XWEIGHTS_CHROMIUM=$(.ci/chromium FOLDER)"
)


def weights() -> xw.Params:
    generator = np.random.default_rng(0)
    arrays = {
        "dense/10/kernel": generator.normal(size=(12, 8)).astype("float32"),
        "dense/9/kernel": generator.normal(size=(8, 40)).astype("float32") * 3,
        "dense/9/bias": np.full(40, np.nan, "float32"),
        EVIL: np.zeros((3, 3)),
        **{f"more/{i}": np.full(i + 1, float(i)) for i in range(8)},
    }
    return xw.Params(arrays, axes={"dense/10/kernel": ("in", "out"), "dense/9/kernel": ("in", "out")})


def other() -> xw.Params:
    changed = weights()
    xw.prune(changed, fraction=0.5, where="dense/*/kernel")
    return changed


class Reader(html.parser.HTMLParser):
    """A parser for the tags of a page and the text of its table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1][0] == "td":
            self.cells[-1] += data


@pytest.fixture(scope="module")
def single() -> str:
    return page(weights(), titles=("w.npz", ""))


@pytest.fixture(scope="module")
def double() -> str:
    return page(weights(), other(), titles=(EVIL, "other.npz"))


def test_the_page_asks_nothing_of_the_network(double: str) -> None:
    reader = Reader(double)
    assert not {tag for tag, _ in reader.tags} & {"link", "iframe", "img", "object", "embed", "base", "form"}
    for tag, given in reader.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = given.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert not re.search(r"url\((?!#)", double)
    assert "@import" not in double
    (policy,) = [given["content"] for tag, given in reader.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_are_escaped_wherever_they_are_shown(double: str) -> None:
    assert double.count("<script>") == 1
    assert EVIL not in double
    assert EVIL in Reader(double).cells
    assert "&lt;script&gt;alert" in double.partition("<title>")[2].partition("</title>")[0]


def test_the_tables_have_the_numbers_of_the_library(single: str) -> None:
    cells = Reader(single).cells
    for row in xw.stats(weights()).rows:
        at = cells.index(row.name)
        assert cells[at + 1] == f"{row.count:,}"
        assert cells[at + 2] == f"{row.norm:.4g}"
        assert cells[at + 7] == f"{row.sparsity:.1%}"
        assert cells[at + 8] == str(row.nan)


def test_parameters_with_nan_or_infinity_stand_first_and_are_marked() -> None:
    target = {f"block/{i}/kernel": np.ones((2, 2)) for i in range(12)}
    target["block/7/kernel"][0, 0] = np.nan
    target["block/9/kernel"][0, 0] = np.inf
    text = page(target)
    rows = re.findall(r'<tr( class="bad")?><td>(.*?)</td>', text)
    assert [name for mark, name in rows if mark] == ["block/7/kernel", "block/9/kernel"]
    assert all(mark for mark, _ in rows[:2])
    assert "2 parameters with NaN or infinity stand first" in text


def test_what_all_names_begin_with_can_be_left_out_on_a_phone() -> None:
    text = page({f"language_model/encoder/{i}/kernel": np.ones((2, 2)) for i in range(3)})
    assert '<p class="begin">All names begin with language_model/encoder/</p>' in text
    assert text.count('<span class="prefix">language_model/encoder/</span>') == 3


def test_a_comparison_shows_the_differences_and_both_sides(double: str) -> None:
    heads = re.findall(r"<h[23]>(.*?)</h[23]>", double)
    assert heads[:2] == ["Differences", "Entries that differ most"]
    assert "Numbers of other.npz" in heads
    assert "Zeros of other.npz" in heads
    cells = Reader(double).cells
    assert cells[cells.index("dense/9/kernel") + 1] == "160"
    assert "no difference in 1 parameters" in page({"w": np.ones(2)}, {"w": np.ones(2)})


def test_identifiers_are_unique_and_every_reference_has_its_target(double: str) -> None:
    reader = Reader(double)
    found = [given["id"] for _, given in reader.tags if given.get("id")]
    assert len(found) == len(set(found))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', double)) <= set(found)


def test_the_same_report_is_the_same_bytes() -> None:
    first, second = (page({"dense/kernel": np.eye(3)}, {"dense/kernel": np.ones((3, 3))}) for _ in range(2))
    assert first == second


def test_pictures_take_the_colour_of_the_page(single: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", single, re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        assert "currentColor" in drawing
        assert "#000000" not in drawing
        assert "fill: #ffffff" not in drawing
    assert "prefers-color-scheme: dark" in single


def test_kernels_too_wide_to_decompose_are_named_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xweights.inspection.html_report.WIDEST", 7)
    text = page({"dense/kernel": np.ones((8, 8)), "small/kernel": np.ones((8, 7))})
    assert "1 kernels wider than 7" in text
    assert "Singular values of a" in text


def test_odd_targets_have_reports_too() -> None:
    for target in ({"a": np.zeros(0)}, {"a": np.full((2, 2), np.inf)}, {"n": np.array(3)}, {"b": np.array([True])}):
        assert "</html>" in page(target)


def dump_page(text: str, script: str, folder: Path) -> str:
    """Return the page as a browser has it after running a script in it."""
    path = folder / "report.html"
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={folder / 'profile'}"]
    ran = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True, timeout=600
    )
    return ran.stdout


def column(dom: str, name: str, place: int) -> list[str]:
    """Return one column of the table whose first row of titles has this name."""
    for table in re.findall(r"<table.*?</table>", dom, re.DOTALL):
        if f">{name}</button>" in table:
            rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.partition("</thead>")[2], re.DOTALL)
            return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)[place] for row in rows]
    raise AssertionError(name)


@needs_browser
def test_in_a_browser_a_click_sorts_by_number_and_another_reverses_the_order(single: str, tmp_path: Path) -> None:
    click = "const norm = document.querySelectorAll('th button')[2]; norm.click();"
    norms = [row.norm for row in xw.stats(weights()).rows]
    up = [float(text) for text in column(dump_page(single, click, tmp_path), "norm", 2)]
    assert up == [float(f"{norm:.4g}") for norm in sorted(norms)]
    dom = dump_page(single, click + "norm.click();", tmp_path)
    assert [float(text) for text in column(dom, "norm", 2)] == up[::-1]
    assert 'aria-sort="descending"' in dom


@needs_browser
def test_in_a_browser_nan_goes_last_and_names_sort_as_people_count(single: str, tmp_path: Path) -> None:
    for clicks in (1, 2):
        click = "document.querySelectorAll('th button')[3].click();" * clicks
        assert column(dump_page(single, click, tmp_path), "norm", 3)[-1] == "nan"
    names = column(dump_page(single, "document.querySelector('th button').click();", tmp_path), "norm", 0)
    assert names.index("dense/9/kernel") < names.index("dense/10/kernel")


@needs_browser
def test_in_a_browser_rows_are_searched_and_nothing_of_a_name_runs(double: str, tmp_path: Path) -> None:
    script = """
      const problems = [];
      addEventListener("securitypolicyviolation", event => problems.push(event.blockedURI));
      const search = [...document.querySelectorAll("input")].at(-1);
      search.value = "DENSE/9"; search.dispatchEvent(new Event("input"));
      const body = search.closest("section").querySelector("tbody");
      document.title = [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].textContent).join("|")
        + " " + problems.length + " " + document.scripts.length;
    """
    dom = dump_page(double, script, tmp_path)
    title = dom.partition("<title>")[2].partition("</title>")[0]
    assert title == "dense/9/bias|dense/9/kernel 0 2"


@needs_browser
def test_in_a_browser_text_can_be_read_in_light_and_in_dark(single: str, tmp_path: Path) -> None:
    script = """
      const light = colour => { const [r, g, b] = colour.match(/[0-9.]+/g).map(x => (x / 255) ** 2.2);
                                return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; };
      const back = light(getComputedStyle(document.body).backgroundColor);
      const ink = element => getComputedStyle(element)[element.closest("svg") ? "fill" : "color"];
      const contrast = element => { const mine = light(ink(element));
                                    return Math.max(mine, back) / Math.min(mine, back); };
      const texts = [...document.querySelectorAll("td, th button, p, h1, h2, svg text")];
      document.title = (back > 0.5 ? "light " : "dark ") + Math.min(...texts.map(contrast)).toFixed(2);
    """
    for setting, name in (("1", "light"), ("0", "dark")):
        assert CHROMIUM is not None
        wrapper = tmp_path / f"browser-{name}"
        wrapper.write_text(f'#!/bin/sh\nexec "{CHROMIUM}" --blink-settings=preferredColorScheme={setting} "$@"\n')
        wrapper.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "CHROMIUM", str(wrapper))
            dom = dump_page(single, script, tmp_path)
        shown, contrast = dom.partition("<title>")[2].partition("</title>")[0].split()
        assert shown == name
        assert float(contrast) >= 4.5


def test_notebooks_show_results_as_tables_with_names_escaped() -> None:
    from xweights.porting.reports import Finding, PortEntry

    entries = (PortEntry(EVIL, "b|c", "dense", ("kernel",), "given the same numbers", 1e-7),)
    finding = Finding(EVIL, "b", "gates swapped", 0.5)
    shown = {
        "params": weights()._repr_html_(),
        "stats": xw.stats(weights())._repr_html_(),
        "diff": xw.diff(weights(), other())._repr_html_(),
        "port": xw.PortReport(entries, ok=True, max_error=1e-7, remains=(EVIL,))._repr_html_(),
        "plan": xw.PortPlan(entries, ambiguous=(EVIL,))._repr_html_(),
        "verify": xw.VerifyReport(entries, ok=False, max_error=0.5, findings=(finding,))._repr_html_(),
        "summary": xw.summary(weights())._repr_html_(),  # type: ignore[attr-defined]
        "parameters": xw.parameters(weights())._repr_html_(),  # type: ignore[attr-defined]
        "load": xw.LoadReport(EVIL, taken={EVIL: (EVIL,)})._repr_html_(),
        "edit": xw.EditReport("w.npz", {EVIL: 3}, False)._repr_html_(),
    }
    for kind, text in shown.items():
        reader = Reader(text)
        assert "script" not in {tag for tag, _ in reader.tags}, kind
        assert {tag for tag, _ in reader.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "p"}, kind
    assert all(EVIL in Reader(shown[kind]).cells for kind in ("params", "summary", "parameters", "edit"))
    assert EVIL not in shown["load"]
    assert EVIL in Reader(shown["stats"]).cells
    assert "dense/9/kernel" in Reader(shown["diff"]).cells
    assert all(EVIL in Reader(shown[kind]).cells for kind in ("port", "plan", "verify"))
    assert "gates swapped" in shown["verify"]
    assert xw.diff(weights(), weights())._repr_html_() == "<p>no difference in 12 parameters</p>"
