"""``rayasd dashboard``: how to reach the Ray dashboard of a run that is at work."""

from pathlib import Path

import click

from rayasd.cli.options import RUN
from rayasd.printing import tell


@click.command()
@RUN
def dashboard(run: Path) -> None:
    """Print how to reach the Ray dashboard of RUN.

    It prints the tunnel's command, the address and the token, for each process that works on RUN by Ray.

    \b
        rayasd dashboard runs/night
    """
    from rayasd.errors import UserError
    from rayasd.sweep.store import RunStore, dashboards

    store = RunStore(run)
    store.manifest()
    found = dashboards(store.holders(), store.events())
    if not found:
        raise UserError(f"nobody works on {store.paths.root} by Ray: a dashboard ends with its job")
    for place in found:
        if "tunnel" in place:
            tell(f"on your machine  {place['tunnel']}")
        tell(f"in a browser     {place['address']}")
        if "token" in place:
            token = Path(place["token"])
            tell(f"token            {token.read_text().strip() if token.is_file() else f'in {token}'}")
