"""``rayasd submit``: a rayasd command as a job of a standing Ray cluster."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayasd.errors import EXIT_INTERRUPTED, UserError, unknown

if TYPE_CHECKING:
    from rayasd.cluster.jobs import Jobs


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", show_envvar=True, required=True, metavar="URL",
              help="Dashboard of the cluster: http://HEAD:8265.")  # fmt: skip
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The cluster's token; default as Ray has it: $RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.")  # fmt: skip
@click.option("--job-id", metavar="ID", help="Name of the job; default: one that Ray makes up.")
@click.option("--python", default="python", show_default=True, help="Python of the cluster's head that has rayasd.")
@click.option("--no-wait", is_flag=True, help="Print the job's ID and leave it alone.")
@click.option("--follow", metavar="ID", help="Show what a job has said, and follow it to its end.")
@click.option("--stop", metavar="ID", help="Interrupt a job; the same command goes on later.")
@click.option("--list", "list_jobs", is_flag=True, help="List the cluster's jobs.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(),
              help="Folder of the cluster's head in which the command starts; default: this one.")  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def submit(
    context: click.Context,
    command: tuple[str, ...],
    address: str,
    token_file: Path | None,
    job_id: str | None,
    python: str,
    no_wait: bool,
    follow: str | None,
    stop: str | None,
    list_jobs: bool,
    folder: Path,
) -> None:
    """Run a COMMAND of rayasd as a job of a standing Ray cluster.

    Or --follow, --stop, --list its jobs. Only the command line is sent: rayasd is installed on every node, and the
    nodes see the same folders, this one too, unless --folder names another. The exit code is the job's; Ctrl-C leaves
    the job running.

    \b
        rayasd submit --address http://HEAD:8265 -- sweep --data /scratch/dcase --run-dir /scratch/runs/night
        rayasd submit --address http://HEAD:8265 --no-wait --job-id night -- sweep --data /scratch/dcase
        rayasd submit --address http://HEAD:8265 --follow night
    """
    if sum(map(bool, (command, follow, stop, list_jobs))) != 1:
        raise UserError("give one of: -- COMMAND, --follow ID, --stop ID, --list")
    known = context.find_root().command
    if command and isinstance(known, click.Group) and command[0] not in (*known.commands, "--debug"):
        raise unknown("command", command[0], known.commands)
    from rayasd.cluster.jobs import Jobs

    jobs = Jobs(address, token_file)
    if list_jobs:
        _print_jobs(jobs)
    elif stop:
        click.echo(f"job {stop}: {jobs.stop(stop)}")
    else:
        job = follow or jobs.submit(command, job_id=job_id, python=python, folder=folder.absolute())
        if no_wait and not follow:
            click.echo(job)
        else:
            raise SystemExit(_follow(jobs, job, token_file))


def _follow(jobs: "Jobs", job: str, token_file: Path | None) -> int:
    try:
        return jobs.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        token = ["--token-file", str(token_file)] if token_file else []
        again = shlex.join(["rayasd", "submit", "--address", jobs.address, *token])
        click.echo(f"\njob {job} goes on: {again} --follow {job} shows it, --stop {job} ends it", err=True)
        return EXIT_INTERRUPTED


def _print_jobs(jobs: "Jobs") -> None:
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from rayasd.cli.display import wide_console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("job", "status", "start", "command"):
        table.add_column(name, no_wrap=name != "command")
    for job in jobs.list():
        start = datetime.fromtimestamp(job["start"]).isoformat(" ", "seconds")
        table.add_row(*map(Text, (job["job"], job["status"], start, job["command"])))
    wide_console().print(table)
