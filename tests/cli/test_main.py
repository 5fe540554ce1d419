"""Errors and interruptions become one line and an exit code."""

import subprocess
import sys

import click
import pytest

from rayasd.cli import main as entry
from rayasd.errors import UserError, unknown


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("no such thing: choose another"), 2, "error: no such thing: choose another"),
        (KeyboardInterrupt(), 75, "interrupted: the same command continues from here"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: Permission denied: /data/x"),
        (ZeroDivisionError("by\nzero"), 1, "error: ZeroDivisionError: by zero (rayasd --debug … shows where)"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_is_raised_becomes_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    said: str,
    debug: bool,
):
    @click.command()
    def fails() -> None:
        raise raised

    monkeypatch.setitem(entry.cli.commands, "fails", fails)
    monkeypatch.setattr(sys, "argv", ["rayasd", *(["--debug"] if debug else []), "fails"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == code
    errors = capsys.readouterr().err
    assert said in errors
    assert ("Traceback" in errors) == (debug and not isinstance(raised, KeyboardInterrupt))


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    assert str(unknown("machine", "fann", ["pump", "fan"])) == (
        "unknown machine 'fann': did you mean 'fan'? there are: fan, pump"
    )
    assert str(unknown("machine", "x", [])) == "unknown machine 'x': there are: none"


ABORTS = """
import atexit, ctypes, sys
libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)  # as a C++ library does whose threads are still at work
sys.argv = ["rayasd", "status", "no-run"]
"""
WITH_A_HANDLER = """
import rayasd.cli.main as entry
from rayasd.__main__ import console
main = entry.main
entry.main = lambda: (atexit.register(print, "handlers have their turn"), main())
console()
"""


@pytest.mark.parametrize(("start", "code", "said"), [
    (WITH_A_HANDLER, 2, "handlers have their turn\n"),
    ("from rayasd.cli.main import main\nmain()", -6, ""),
])  # fmt: skip
def test_no_library_takes_the_exit_code_of_a_command(start: str, code: int, said: str):
    done = subprocess.run([sys.executable, "-c", ABORTS + start], capture_output=True, text=True, check=False)
    assert "is not a run directory" in done.stderr
    assert (done.returncode, done.stdout) == (code, said)
