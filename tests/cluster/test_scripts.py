"""The batch scripts, with commands of Slurm's that only note how they were called."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.command import environment
from tests.conftest import small_sweep

SLURM = Path(__file__).parents[2] / "slurm"
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "rayasd", "sleep")
NOTE = """#!/bin/bash
name=$(basename "$0")
printf '%s' "$name" >>"$CALLS"
printf '\\t%s' "$@" >>"$CALLS"
for variable in ${NOTED:-}; do printf '\\t%s=%s' "$variable" "${!variable-unset}" >>"$CALLS"; done
echo >>"$CALLS"
variable=SAYS_$name; [ -z "${!variable:-}" ] || echo "${!variable}"
variable=FAILS_$name; exit "${!variable:-0}"
"""


@dataclass
class Site:
    """A checkout whose environment and whose Slurm are made of notes."""

    folder: Path
    scripts: Path
    calls: list[list[str]] = field(default_factory=list)

    def run(self, script: Path | str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script, or bash code; ``calls`` are then its commands, each with its words."""
        notes = self.folder / "calls"
        notes.write_text("")
        kept = {k: v for k, v in environment(self.folder).items() if not k.startswith(("SLURM_", "SBATCH_"))}
        kept |= {"PATH": f"{self.folder / 'bin'}:{kept['PATH']}", "CALLS": str(notes), "RAYASD_VENV": str(self.folder)}
        command = [script, *words] if isinstance(script, Path) else ["bash", "-c", script, *words]
        done = subprocess.run(
            list(map(str, command)), env=kept | variables, cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        calls = [line.split("\t") for line in notes.read_text().splitlines()]
        self.calls = [call for call in calls if call[:2] != ["scontrol", "show"]]  # where a script came from
        return done


def make_site(folder: Path, checkout: Path) -> Site:
    scripts = shutil.copytree(SLURM, checkout / "slurm", ignore=shutil.ignore_patterns("site.env"))
    (folder / "bin").mkdir()
    for name in COMMANDS:
        (folder / "bin" / name).write_text(NOTE)
        (folder / "bin" / name).chmod(0o755)
    return Site(folder, scripts)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, tmp_path / "checkout")


ARRAY = {"SAYS_rayasd": "shares: 70", "SAYS_sbatch": "7"}


@pytest.mark.parametrize(("most", "tasks"), [({}, 70), ({"RAYASD_TASKS": "8"}, 8)])
def test_an_array_has_a_task_for_each_share(site: Site, most: dict, tasks: int):
    noted = "RAYASD_TASKS RAYASD_PART"
    done = site.run(site.scripts / "array.sh", "--time=1", "--", "--data", "x", **ARRAY, **most, NOTED=noted)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"plan 7, {tasks} tasks 7, report 7\n"
    assert site.calls[0][:5] == ["rayasd", "sweep", "--data", "x", "--dry-run"]
    assert f"--array=1-{tasks}" in site.calls[2]
    assert [call[-2:] for call in site.calls[1:]] == [
        [f"RAYASD_TASKS={tasks}", f"RAYASD_PART={part}"] for part in ("plan", "share", "report")
    ]
    task = {"RAYASD_PART": "share", "RAYASD_TASKS": "8", "SLURM_ARRAY_TASK_ID": "3"}
    site.run(site.scripts / "array.sh", "--data", "x", **task)
    assert site.calls[-1] == ["rayasd", "sweep", "--data", "x", "--executor", "local", "--only", "3/8"]


def test_a_network_of_all_machines_is_trained_before_the_array(site: Site):
    said = {"SAYS_rayasd": "shares: 2 and all machines together", "SAYS_sbatch": "7"}
    done = site.run(site.scripts / "array.sh", "--time=1", "--", "--data", "x", **said, NOTED="RAYASD_PART")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "plan 7, shared network 7, 2 tasks 7, report 7\n"
    _, _, shared, shares, _ = site.calls
    assert {"--array=1-1", "--dependency=afterok:7", "RAYASD_PART=shared"} <= set(shared)
    assert {"--array=1-2", "--dependency=afterok:7,afterany:7", "RAYASD_PART=share"} <= set(shares)


def test_without_shares_nothing_is_submitted(site: Site):
    for said in ("shares: ", "shares: 0", "3 machines (fan, pump, valve)"):
        done = site.run(site.scripts / "array.sh", "--", "--data", "x", SAYS_rayasd=said)
        assert done.returncode == 1
        assert done.stderr.endswith("rayasd sweep --dry-run names no shares\n")
        assert [call[0] for call in site.calls] == ["rayasd"]


@pytest.mark.slow
def test_a_dry_run_in_a_script_names_the_number_of_shares(tree: Path, tmp_path: Path, site: Site):
    (site.folder / "bin/rayasd").unlink()
    (site.folder / "bin/rayasd").symlink_to(Path(sys.executable).with_name("rayasd"))
    words = small_sweep(tree, tmp_path / "run", "--seeds", "0-49")
    done = site.run(site.scripts / "array.sh", "--", *words[1:], SAYS_sbatch="7", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "plan 7, 100 tasks 7, report 7\n"  # of 150


def test_plan_and_report_ask_for_no_gpus(site: Site):
    gpus = ["--gpus=1", "--gpus", "1", "-G1", "-G", "1", "--gpus-per-node=2", "--gres=gpu:1", "--gres", "gpu:1",
            "--mem-per-gpu=4G", "--cpus-per-gpu", "8"]  # fmt: skip
    others = ["--time=1", "--mem", "8G", "-p", "gpu", "--comment=--gpus"]
    words = [*gpus[:4], *others[:3], *gpus[4:], *others[3:]]
    variables = {"SBATCH_GPUS": "1", "SBATCH_GRES": "gpu:1", "SBATCH_PARTITION": "gpu"}
    done = site.run(
        site.scripts / "array.sh", *words, "--", "--data", "x", **ARRAY, **variables, NOTED=" ".join(variables)
    )
    assert done.returncode == 0, done.stderr
    plan, machines, report = site.calls[1:]
    for call in (plan, report):
        assert call[:3] == ["sbatch", "--parsable", "--output=rayasd-%j.log"]
        assert call[3:9] == others
        assert not set(call) & set(gpus)
        assert call[-3:] == ["SBATCH_GPUS=unset", "SBATCH_GRES=unset", "SBATCH_PARTITION=gpu"]
    assert machines[:3] == ["sbatch", "--parsable", "--output=rayasd-%A-%a.log"]  # before the user's, which counts then
    assert machines[3 : 3 + len(words)] == words
    assert machines[-3:] == ["SBATCH_GPUS=1", "SBATCH_GRES=gpu:1", "SBATCH_PARTITION=gpu"]


def test_plan_and_report_get_options_of_their_own(site: Site):
    (site.scripts / "site.env").write_text('RAYASD_WITHOUT_GPUS="--partition=cpu --qos=short"\n')
    done = site.run(site.scripts / "array.sh", "--partition=gpu", "--gpus=1", "--", "--data", "x", **ARRAY)
    assert done.returncode == 0, done.stderr
    plan, machines, report = site.calls[1:]
    for call in (plan, report):
        assert call[3:6] == ["--partition=gpu", "--partition=cpu", "--qos=short"]  # the last counts
    assert "--partition=cpu" not in machines


@pytest.mark.parametrize(
    ("variables", "said", "requeued"),
    [
        ({"SAYS_squeue": "RUNNING"}, "lost: back into the queue", True),
        ({"SAYS_squeue": "COMPLETING"}, "", False),  # cancelled, or preempted
        ({"SLURM_RESTART_COUNT": "10"}, "lost, but restarted 10 times already (RAYASD_MAX_RESTARTS=10): submit", False),
        ({"SLURM_RESTART_COUNT": "2", "RAYASD_MAX_RESTARTS": "2"}, "RAYASD_MAX_RESTARTS=2", False),
        ({"SAYS_squeue": "no slurm.conf", "FAILS_squeue": "1"}, "squeue fails on", False),
        ({"SAYS_squeue": "RUNNING", "FAILS_scontrol": "1"}, "scontrol fails on", True),
    ],
)
def test_who_is_not_put_back_in_the_queue_reads_why(site: Site, variables: dict, said: str, requeued: bool):
    job = {"SLURM_JOB_ID": "5", **variables}
    done = site.run(f". '{site.scripts}/job.bash'; requeue lost", **job)
    assert done.returncode == 0
    assert said in done.stdout + done.stderr
    assert bool(said) == bool(done.stdout + done.stderr)
    assert (["scontrol", "requeue", "5"] in site.calls) == requeued


def test_a_lost_head_is_told_in_the_jobs_log_itself(site: Site):
    log = site.folder / "rayasd-5.log"
    log.write_text("before\n")
    job = {"SLURM_JOB_ID": "5", "SAYS_squeue": "RUNNING", "SAYS_scontrol": f"   StdOut={log}"}
    done = site.run(f". '{site.scripts}/job.bash'; on_node bash -c 'exit 76'", **job)
    assert (done.returncode, done.stdout) == (76, "")
    assert log.read_text().startswith("before\nthe head is lost: back into the queue\n")


JOB = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "n[1-3]", "SAYS_squeue": "RUNNING"}


@pytest.mark.parametrize("code", [0, 1, 2, 75, 76, 77])
def test_launchers_that_end_by_themselves_are_not_started_again(site: Site, code: int):
    done = site.run(site.scripts / "train.sh", **JOB, FAILS_srun=str(code))
    assert done.returncode == code
    assert [call[0] for call in site.calls].count("srun") == 1
    assert (["scontrol", "requeue", "5"] in site.calls) == (code == 75)


@pytest.mark.parametrize("code", [137, 233])
def test_launchers_that_srun_killed_or_could_not_start_are_started_again_on_the_nodes_that_are_left(
    site: Site, code: int
):
    lost = JOB | {"SAYS_squeue": "RUNNING 2 n[1,3]", "FAILS_srun": str(code), "RAYASD_MAX_RESTARTS": "2"}
    done = site.run(site.scripts / "train.sh", **lost, NOTED="SLURM_JOB_NODELIST RAYASD_AGAIN")
    assert done.returncode == code
    assert (
        done.stdout.count(f"srun ended with {code}, since a host was lost or came back: started again on 2 nodes") == 2
    )
    first, *others = [call for call in site.calls if call[0] == "srun"]
    assert "--ntasks=3" in first
    assert "--overlap" not in first
    assert len(others) == 2
    for number, call in enumerate(others, 1):
        assert {"--ntasks=2", "--overlap", "--mem=0"} <= set(call)
        assert call[-2:] == ["SLURM_JOB_NODELIST=n[1,3]", f"RAYASD_AGAIN={number}"]
    never = site.run(site.scripts / "train.sh", **lost | {"RAYASD_MAX_RESTARTS": "0"})
    assert never.returncode == code
    assert f"srun ended with {code}, but restarted 0 times already (RAYASD_MAX_RESTARTS=0)" in never.stderr
    cancelled = site.run(site.scripts / "train.sh", **lost | {"SAYS_squeue": "COMPLETING 3 n[1-3]"})
    assert cancelled.returncode == code
    assert [call[0] for call in site.calls].count("srun") == 1


def test_a_launcher_that_is_killed_is_not_taken_for_tasks_that_srun_killed(site: Site):
    job = {"SLURM_JOB_ID": "5", "SAYS_squeue": "RUNNING"}
    done = site.run(f". '{site.scripts}/job.bash'; on_node bash -c 'kill -9 $$'", **job)
    assert done.returncode == 1
    assert done.stderr.endswith(" was killed (exit code 137)\n")
    assert not site.calls


def test_a_run_that_is_complete_is_ranked_without_a_ray(site: Site):
    job = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "2"}
    complete = '{"states": {"done": 9, "waiting": 0, "running": 0, "failed": 0, "blocked": 0}}'
    site.run(site.scripts / "score.sh", "runs/a", "--device", "cpu", **job, SAYS_rayasd=complete)
    assert site.calls[-1] == ["rayasd", "embed", "runs/a", "--device", "cpu", "--detect"]
    site.run(site.scripts / "score.sh", "runs/a", **job, SAYS_rayasd=complete.replace('"failed": 0', '"failed": 1'))
    (srun,) = [call for call in site.calls if call[0] == "srun"]
    assert srun[-4:] == ["--", "embed", "runs/a", "--detect"]


def test_a_host_without_slurms_commands_says_so(site: Site):
    (site.folder / "bin/squeue").unlink()
    bash = shutil.which("bash")
    assert bash is not None
    lonely = site.folder / "lonely"
    lonely.mkdir()
    (lonely / "hostname").symlink_to(shutil.which("hostname") or "/bin/hostname")
    done = site.run(f". '{site.scripts}/job.bash'; PATH='{lonely}'; requeue lost", SLURM_JOB_ID="5")
    assert "lost, but not back into the queue: squeue fails on" in done.stderr
    assert "squeue: command not found" in done.stderr


def test_modules_that_cannot_be_loaded_end_a_script_with_their_name(site: Site):
    done = site.run(site.scripts / "train.sh", "--", "--data", "x", RAYASD_MODULES="cuda/99")
    assert done.returncode == 2
    assert "module load cuda/99 failed on" in done.stderr
    assert f"see RAYASD_MODULES in {site.scripts}/site.env" in done.stderr
    assert not site.calls


def test_launch_gets_the_sites_options_and_srun_the_environment(site: Site):
    (site.scripts / "site.env").write_text('RAYASD_LAUNCH="--node-address ib0 --wait 300"\n')
    job = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "1", "SLURM_EXPORT_ENV": "NONE"}
    done = site.run(site.scripts / "train.sh", "--data", "x", **job, NOTED="SLURM_EXPORT_ENV RAYASD_HERE")
    assert done.returncode == 0, done.stderr
    srun = next(call for call in site.calls if call[0] == "srun")
    options = srun[srun.index("launch") : srun.index("--")]
    assert options == ["launch", "--temp-dir", "/tmp", "--node-address", "ib0", "--wait", "300"]
    assert srun[-2:] == ["SLURM_EXPORT_ENV=ALL", "RAYASD_HERE=unset"]


@pytest.mark.parametrize("name", ["train.sh", "score.sh", "array.sh"])
def test_a_checkout_whose_path_has_a_space(tmp_path: Path, name: str):
    site = make_site(tmp_path, tmp_path / "two words")
    done = site.run(site.scripts / name, "--", "--data", "x", **ARRAY, NOTED="RAYASD_HERE")
    assert done.returncode == 0, done.stderr
    assert [call[-1] for call in site.calls if call[0] == "sbatch"][-1] == f"RAYASD_HERE={site.scripts}"
    copy = shutil.copy(site.scripts / name, tmp_path / "slurm_script")  # as Slurm does
    job = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "1", "RAYASD_PART": "plan",
           "SAYS_scontrol": f"   Command={site.scripts / name} --data x"}  # fmt: skip
    done = site.run(copy, "--data", "x", **job, RAYASD_HERE=str(site.scripts))
    assert done.returncode == 0, done.stderr
    assert {"srun", "rayasd"} & {call[0] for call in site.calls}
    refused = site.run(copy, "--data", "x", **job)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"no job.bash where {tmp_path}/two is; if a space is in its path: ")
    assert refused.stderr.count("\n") == 1
    assert not site.calls


def test_wrong_options_of_a_sweep_are_refused_before_the_job_is_submitted(site: Site):
    done = site.run(site.scripts / "train.sh", "--nodes=2", "--", "--data", "x", FAILS_rayasd="2")
    assert done.returncode == 2
    assert site.calls == [["rayasd", "sweep", "--data", "x", "--dry-run"]]


def test_one_launcher_per_node_whatever_the_jobs_tasks(site: Site):
    job = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2"}
    site.run(site.scripts / "train.sh", **job)
    srun = next(call for call in site.calls if call[0] == "srun")
    assert {"--ntasks=3", "--ntasks-per-node=1", "--cpu-bind=none", "--mpi=none"} <= set(srun)
    assert not [word for word in srun if word.startswith("--cpus-per-task")]  # nodes may differ
    site.run(site.scripts / "train.sh", **job, SLURM_CPUS_PER_TASK="4")
    assert "--cpus-per-task=4" in next(call for call in site.calls if call[0] == "srun")
