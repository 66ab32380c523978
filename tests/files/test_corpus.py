"""Malformed and hostile files: one typed error each, nothing run, nothing else opened, in bounded memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MAX_BYTES = 16 << 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    pytest.importorskip("h5py", reason="the corpus has HDF5 files: python -m pip install 'xweights-nn[files]'")
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is measured by what Linux says in /proc")
    folder = tmp_path_factory.mktemp("corpus")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, str(HERE / "corpus.py"), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    manifest, report = (json.loads((folder / name).read_text()) for name in ("manifest.json", "report.json"))
    return folder, manifest, report


def assert_none(wrong: dict[str, Any]) -> None:
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_there_are_well_over_a_hundred_files_of_every_format(corpus: Any) -> None:
    _, manifest, report = corpus
    assert manifest.keys() == report.keys()
    assert sum(entry["expect"] != "valid" for entry in manifest.values()) >= 150
    for start in ("st-", "npz-", "pt-", "h5-", "keras-", "sharded-"):
        assert sum(name.startswith(start) for name in manifest) >= 8


def test_every_bad_file_ends_in_the_one_error_that_the_manifest_names(corpus: Any) -> None:
    _, manifest, report = corpus
    wrong = {}
    for name, expected in manifest.items():
        result = report[name]
        if expected["expect"] == "valid":
            continue
        same = result.get("error") == expected["expect"] and expected["reason"] in result["reason"]
        if not same or (expected["key"] is not None and result["key"] != expected["key"]):
            wrong[name] = (
                f"expected {expected}, got {result.get('error')}: {result.get('key')!r} {result.get('text', result)}"
            )
    assert_none(wrong)


def test_every_error_names_the_file_and_the_reason(corpus: Any) -> None:
    folder, manifest, report = corpus
    bad = [name for name, expected in manifest.items() if expected["expect"] != "valid"]
    wrong = {}
    for name in bad:
        text = report[name].get("text", "")
        if str(folder) not in text or not report[name].get("reason") or len(text) > 1500:
            wrong[name] = text
    assert_none(wrong)


def test_every_odd_but_valid_file_loads_with_the_right_values(corpus: Any) -> None:
    _, manifest, report = corpus
    wrong = {}
    for name, expected in manifest.items():
        if expected["expect"] != "valid":
            continue
        result = report[name]
        if "error" in result or result["count"] != expected.get("count", result["count"]):
            wrong[name] = result
        elif "arrays" in expected and result["arrays"] != expected["arrays"]:
            wrong[name] = f"expected {expected['arrays']}, got {result['arrays']}"
    assert_none(wrong)


def test_nothing_in_a_file_is_run(corpus: Any) -> None:
    folder, _, report = corpus
    assert not list(folder.rglob("PWNED*"))
    assert_none({name: result["events"] for name, result in report.items() if result["events"]})


def test_only_the_named_file_and_its_shards_are_opened_and_none_is_made(corpus: Any) -> None:
    folder, manifest, report = corpus
    wrong = {}
    for name, result in report.items():
        allowed = {str(folder / part) for part in [name, *manifest[name].get("shards", [])]}
        if name.startswith("sharded-"):
            allowed |= {str(path) for path in folder.glob("shard-*.safetensors") if not path.is_symlink()}
        for path, _, flags in result["opened"]:
            if (path not in allowed and path != str(folder / (result["key"] or "-"))) or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            ):
                wrong[name] = path
    assert_none(wrong)
    assert json.loads((folder / "made.json").read_text()) == []


def test_no_file_takes_more_than_five_seconds_or_64_mib_beyond_max_bytes(corpus: Any) -> None:
    _, _, report = corpus
    slow = {name: result["seconds"] for name, result in report.items() if result["seconds"] > 5}
    large = {name: result["peak"] / MIB for name, result in report.items() if result["peak"] > MAX_BYTES + 64 * MIB}
    assert_none(slow | large)
