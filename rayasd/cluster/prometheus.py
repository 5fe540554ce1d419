"""A Prometheus on this host for the metrics of a run's Ray, for as long as somebody looks."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rayasd.errors import UserError
from rayasd.host import end_with_parent
from rayasd.printing import tell

ADDRESS = "127.0.0.1:9090"
"""Where Ray's dashboard looks for it unless told otherwise; everybody on this host can read there."""


def run_prometheus(discovery: Sequence[str], *, program: str = "prometheus") -> None:
    """Run Prometheus until Ctrl-C, then remove what it has stored.

    ``discovery``: files in which Ray lists the ports of its metrics.

    Raises UserError: it is not installed, ends by itself, or this is not the host of these files.
    """
    if shutil.which(program) is None:
        raise UserError(f"no {program} on the PATH: apt install prometheus, or unpack one of prometheus.io there")
    if missing := [path for path in discovery if not Path(path).is_file()]:
        raise UserError(f"no {missing[0]} here: start this on the sweep's head node, a few seconds after the sweep")
    with tempfile.TemporaryDirectory(prefix="rayasd-prometheus-") as folder:
        config, log = Path(folder, "prometheus.yml"), Path(folder, "log")
        listed = {"files": list(discovery), "refresh_interval": "5s"}  # Ray adds ports; not each change raises an event
        scrape = {"job_name": "ray", "scrape_interval": "5s", "file_sd_configs": [listed]}
        config.write_text(json.dumps({"scrape_configs": [scrape]}))  # which is YAML too
        options = {"config.file": config, "storage.tsdb.path": f"{folder}/data", "web.listen-address": ADDRESS}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "--log.level=error", *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, preexec_fn=end_with_parent,
            )  # fmt: skip
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            tell("Prometheus has ended, and its data are removed")
            return
        said = [line for line in log.read_text(errors="replace").splitlines() if "err=" in line]
        raise UserError(f"{program} ended with exit code {process.returncode}: {' '.join(said[-1:])[:300]}")
