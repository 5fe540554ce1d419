"""The ``rayasd`` command group, and how errors and interruptions become exit codes."""

import os
import signal
import sys
import traceback
from pathlib import Path

import click

from rayasd import __version__
from rayasd.cli.data import data
from rayasd.cli.doctor import doctor
from rayasd.cli.gc import gc
from rayasd.cli.launch import launch
from rayasd.cli.report import compare, export, leaderboard, report
from rayasd.cli.score import pack, recalibrate, score
from rayasd.cli.settings import settings
from rayasd.cli.status import dashboard, status, stop, track
from rayasd.cli.submit import submit
from rayasd.cli.sweep import detect, embed, sweep, train
from rayasd.errors import EXIT_INTERRUPTED, EXIT_UNITS_FAILED, Interrupted, UserError, one_line
from rayasd.files import storage_error
from rayasd.printing import tell

_SOMEWHERE = "the folder that is written to"  # takes the place of a path that the system does not name


class InOrder(click.Group):
    """Lists commands in the order in which they come into use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give their names, as they were added."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="rayasd")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """Find faulty machines by their sound when only normal sounds exist for training.

    A sweep turns a folder of recordings into a ranked table and report.html:

    \b
        rayasd data synth data/synthetic        # or your own recordings: rayasd data index --help
        rayasd sweep --data data/synthetic --preset demo
    """


for command in (data, sweep, train, embed, detect, status, stop, dashboard, track, report, leaderboard, compare, score,
                pack, recalibrate, export, settings, launch, submit, doctor, gc):  # fmt: skip
    cli.add_command(command)


def _interrupt(*_: object) -> None:
    """Let a signal do what Ctrl-C does: end the units and print that the run can be resumed."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 some units failed, 2 usage, 75 interrupted, 77 stopped."""
    debug = "--debug" in sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    try:
        if folder := os.environ.pop("RAYASD_FOLDER", ""):  # of a job that rayasd submit has sent
            os.chdir(folder)
            sys.path[0] = folder
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        if debug:
            tell(traceback.format_exc(), err=True)
        tell(f"error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort) as error:  # click turns the first into the second
        why = error.__cause__ if isinstance(error.__cause__, Interrupted) else error
        said = f"{why}: " if isinstance(why, Interrupted) else ""
        tell(f"interrupted: {said}the same command continues from here", err=True)
        code = EXIT_INTERRUPTED
    except Exception as error:  # of the system (no space, no permission), or ours
        if debug:
            tell(traceback.format_exc(), err=True)
        if isinstance(error, OSError) and error.filename is not None:
            what = f"{error.strerror}: {error.filename}"
        else:
            what = f"{type(error).__name__}: {error}"
        trouble = storage_error(error, Path(_SOMEWHERE), Path("/"))
        tell(f"error: {trouble or one_line(what, 1000) + ' (rayasd --debug … shows where)'}", err=True)
        code = EXIT_UNITS_FAILED
    sys.exit(code if isinstance(code, int) else 0)
