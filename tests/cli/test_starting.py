"""The command as a process: start-up, --help, shell completion and interrupts."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

import xweights as xw
from xweights.cli.app import COMMANDS, app
from xweights.cli.exit_codes import INTERRUPTED

Run = Callable[..., Any]
NAMES = sorted(function.__name__ for function, _, _ in COMMANDS)
EXAMPLES = [example for _, _, examples in COMMANDS for example in examples]
HEAVY = {"numpy", "rich", "ml_dtypes", "safetensors", "matplotlib", "torch", "keras", "tensorflow", "jax"}


def group() -> Any:
    """Return the commands as the parser has them."""
    return typer.main.get_command(app)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from xweights.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: print('ENDED', end.code, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    shown, _, ended = ran.stdout.partition("ENDED ")
    status, *modules = ended.split()
    assert status == "0"
    assert set(modules) & HEAVY == set()
    assert "..." not in shown.partition("Commands:")[2]
    assert sorted(re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2], re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_says_what_it_does_and_shows_examples(run: Run, name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert f"xweights {name} " in shown.stdout.partition("Examples:")[2]
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
    assert all(param.help for param in group().commands[name].params)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_can_be_understood(example: str) -> None:
    words = shlex.split(example.partition(" | ")[0].partition(" > ")[0])
    assert words[0] == "xweights"
    command = group().commands[words[1]]
    context = command.make_context(words[1], words[2:])
    assert context.params


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("xweights di", {"diff"}),
        ("xweights plot --ki", {"--kind"}),
        ("xweights plot --kind sp", {"sparsity", "spectra"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words: str, offered: set[str]) -> None:
    place = str(len(words.split()) - 1)
    asked = {"_XWEIGHTS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    shown = CliRunner().invoke(app, [], prog_name="xweights", env=asked)
    assert set(shown.stdout.split()) == offered


@pytest.mark.skipif("XWEIGHTS_TEST_WHEEL" not in os.environ, reason="only nox tests the wheel")
def test_the_wheel_installs_a_script() -> None:
    (script,) = metadata.distribution("xweights-nn").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("xweights", "xweights.cli.app:main")
    ran = subprocess.run([str(Path(sys.executable).with_name("xweights")), "--help"], capture_output=True, check=True)
    assert b"Commands:" in ran.stdout


def test_a_process_says_by_its_status_whether_something_differs(shell: Run) -> None:
    ends = [shell("diff", "a.npz", other) for other in ("a.npz", "b.npz", "c.npz")]
    assert [process.returncode for process in ends] == [0, 1, 2]
    assert "Traceback" not in "".join(process.stderr for process in ends)
    assert ends[2].stderr.startswith("error: there is no file 'c.npz'")


def test_ctrl_c_ends_a_command_with_one_line(place: Path) -> None:
    program = [sys.executable, "-m", "xweights", "convert", "nets:slow", "out.npz"]
    running = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # As long as it takes: under load a process has been seen to need a minute to start.
        while not (place / "started").exists() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == INTERRUPTED
    assert said == "interrupted: no file was changed\n"
    assert not (place / "out.npz").exists()


@pytest.mark.parametrize(
    ("words", "inside"),
    [
        (["convert", "a.npz", "out.npz"], "xweights.files.formats.npz.write"),
        (["report", "a.npz", "--out", "out.html"], "xweights.inspection.html_report.plot"),
        (["plot", "a.npz", "--out", "out.png"], "matplotlib.figure.Figure.savefig"),
    ],
)
def test_ctrl_c_in_the_middle_of_writing_leaves_the_old_file_and_no_other(
    run: Run, place: Path, words: list[str], inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inside.startswith("matplotlib") or "report" in words:
        pytest.importorskip("matplotlib")

    def interrupt(sink: Any, *_: object, **__: object) -> None:
        if hasattr(sink, "file"):
            sink.write(b"half of a file")
        raise KeyboardInterrupt

    out = place / words[-1]
    out.write_bytes(b"what was there before")
    before = sorted(path.name for path in place.iterdir() if path.name != "__pycache__")
    if inside == "xweights.files.formats.npz.write":
        import dataclasses

        from xweights.files.formats import table

        kinds = [
            dataclasses.replace(entry, write=interrupt) if entry.name == "npz" else entry for entry in table.FORMATS
        ]
        monkeypatch.setattr(table, "FORMATS", kinds)
    else:
        monkeypatch.setattr(inside, interrupt)
    shown = run(*words)
    assert shown.exit_code == INTERRUPTED
    assert shown.stderr == "interrupted: no file was changed\n"
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == before


def test_a_closed_pipe_causes_no_traceback(place: Path) -> None:
    # More than a pipe holds.
    xw.save({f"{'block' * 20}{i}/kernel": np.array([float(i)]) for i in range(700)}, "many.npz")
    program = f"{shlex.quote(sys.executable)} -m xweights show many.npz | head -n 2"
    ran = subprocess.run(["/bin/sh", "-c", program], capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == 2
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_on_a_terminal_of_80_columns_the_table_fits_and_progress_is_wiped_away(place: Path) -> None:
    shown = on_a_terminal([sys.executable, "-m", "xweights", "stats", "a.npz"], columns=80)
    assert "\x1b[" in shown
    # The bar comes first, and the line it stood in is erased.
    drawn, _, table = shown.rpartition("\x1b[2K")
    assert "dense/bias" in drawn
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", table).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(("conv/", "dense/")) for line in lines) >= 4


def on_a_terminal(program: list[str], *, columns: int) -> str:
    """Run a program on a terminal of this width, and return its output."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    quiet = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    running = subprocess.Popen(program, stdout=theirs, stderr=theirs, env={**quiet, "TERM": "xterm"})
    os.close(theirs)
    found = b""
    while select.select([ours], [], [], 600)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        found += piece
    os.close(ours)
    assert running.wait(timeout=600) == 0
    return found.decode()
