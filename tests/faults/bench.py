"""A small undisturbed run to be copied, hurt and gone on with."""

import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from rayasd.sweep.store import RunStore
from tests.command import Done, call, call_process, command_line, environment
from tests.conftest import run_locally, small_sweep, write_tree
from tests.faults.results import results_of


class Bench:
    """Two machines' clips, and an undisturbed run of them."""

    def __init__(self, folder: Path) -> None:
        self.tree = write_tree(folder / "tree", ("fan", "pump"))
        self.cache = folder / "cache"
        self.run = run_locally(self.tree, self.cache, folder / "run")
        self.results = results_of(self.run)

    def copy(self, run: Path, *without: str) -> Path:
        """Copy the run, as if these folders or files of it had not come to be yet."""
        shutil.copytree(self.run, run, dirs_exist_ok=True)
        for name in without:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
        return run

    def start(self, *words: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command_line(*words), env=environment(self.cache), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def call(self, *words: object, cache: Path | None = None, apart: bool = False) -> Done:
        """Run a command within this process, or ``apart`` in one of its own. All it prints is in ``stdout``."""
        done = (call_process if apart else call)(*words, cache=cache or self.cache)
        return Done(done.args, done.returncode, done.stdout + done.stderr)

    def held(self, run: Path) -> AbstractContextManager[None]:
        """Hold a run as its driver does."""
        return RunStore(run).held()

    def sweep(self, run: Path, *more: object, cache: Path | None = None) -> Done:
        return self.call(*small_sweep(self.tree, run, *more), cache=cache)

    def goes_on(self, run: Path) -> None:
        """Make sure that the same command ends as an undisturbed run."""
        says(self.sweep(run), 0)
        self.same(run)

    def same(self, run: Path) -> None:
        """Make sure that a run has the results of an undisturbed one."""
        found = results_of(run)
        assert [name for name in self.results if found.get(name) != self.results[name]] == []
        assert found.keys() == self.results.keys()


def says(done: Done, code: int, *parts: str) -> None:
    """Make sure that a command ended with this code, and said all this, without a traceback."""
    assert done.returncode == code, done.stdout
    assert "Traceback (" not in done.stdout
    for part in parts:
        assert part in " ".join(done.stdout.split()), done.stdout
