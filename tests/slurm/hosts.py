"""A real Slurm cluster on one machine: every host is a process 1 in namespaces of its own.

A host has its own network (10.78.0.K, on a bridge that only the hosts see), processes, name, /tmp/ray and /dev/shm; all
other files are common, as on a shared file system. ``control`` runs slurmctld and munged; ``h1``, ``h2``, … run slurmd.
``h1`` and ``h2`` have two CPUs and one fake GPU each and are partition ``main``, which ``urgent`` preempts; others have
one CPU and no GPU; ``mixed`` has all. Jobs run as root. Each checkout has a cluster of its own: two of them can test at
once. By hand, as root:

  python -m tests.slurm.hosts up [N] | status | run WORDS… | node K WORDS… | mpirun WORDS… | down
                              cut K | heal K | kill K [loud] | boot K
"""

import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "mpirun", "ip", "nsenter", "unshare", "setpriv")
CONTROLLER = "control"
NETWORK = "10.78.0"
CHECKOUT = hashlib.sha256(bytes(Path(__file__).resolve())).hexdigest()[:6]
FOLDER = Path(f"/run/rayasd-hosts-{CHECKOUT}")
_PREFIX = f"rayasd-{CHECKOUT}-"  # of our network namespaces
_SWITCH = f"{_PREFIX}switch"
_JOBS = 10_000  # numbers that a cluster has for its jobs: control groups bear them, and those are the machine's
_NAMESPACES = ("--uts", "--mount", "--ipc", "--pid")  # besides the network

Done = subprocess.CompletedProcess[str]

_SLURM_CONF = """\
ClusterName=rayasd
SlurmctldHost=control({network}.254)
SlurmUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=pmi2
GresTypes=gpu
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=20
UnkillableStepTimeout=30
SlurmdTimeout={slurmd_timeout}
ReturnToService=2
DefMemPerCPU={memory_per_cpu}
{nodes}
PartitionName=main Nodes={alike} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes={alike} PriorityTier=10 PreemptMode=OFF
PartitionName=mixed Nodes=ALL PriorityTier=1 PreemptMode=OFF
"""

# A host's name is the same in every checkout's cluster, so others' jobs may be beside ours: leave those.
_REMOVE_GROUPS = """\
mount -t cgroup -o freezer freezer "$0" || exit
for group in "$0/slurm_$1"/uid_*/job_*; do
    number=${group##*_}
    [ -d "$group" ] && [ "$number" -ge "$2" ] && [ "$number" -lt "$3" ] || continue
    find "$group" -depth -type d -exec rmdir {} + || exit
done
[ ! -d "$0/slurm_$1" ] || find "$0/slurm_$1" -depth -type d -exec rmdir {} + 2>/dev/null
exit 0
"""


class Hosts:
    """This checkout's cluster, if it is up. Ends only processes that it started, by number and start time."""

    def __init__(self, folder: Path = FOLDER, *, cpus: int = 2, slurmd_timeout: int = 20, keep: bool = False) -> None:
        """Say what is not as usual.

        Args:
            folder: for state and logs; /run and its like, where only root writes.
            cpus: of each host, be they there or not.
            slurmd_timeout: seconds of silence after which Slurm takes a host for DOWN.
            keep: hosts outlive the process that starts them, else they end with it, even if it is killed.

        """
        self.folder, self.cpus, self.slurmd_timeout = folder, cpus, slurmd_timeout
        self._keep = keep
        self._lock: int | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def missing(self) -> str | None:
        """Why no cluster can be started here, if so."""
        if os.geteuid() != 0:
            return "a cluster of hosts needs root"
        if absent := [program for program in PROGRAMS if not shutil.which(program, path=_path())]:
            return f"not installed: {', '.join(absent)} (tests/slurm/install.sh)"
        trial = "mount -t proc proc /proc; mount -t cgroup -o freezer freezer $0; ip link add p1 type veth peer p2; " \
                "ip link add br0 type bridge"  # fmt: skip
        with tempfile.TemporaryDirectory() as mount_point:
            tried = _try("unshare", *_NAMESPACES, "--net", "--fork", "sh", "-ec", trial, mount_point)
        if tried.returncode:
            return f"no namespaces, bridges or cgroup v1 freezer here: {tried.stdout.strip()[-200:]}"
        lock = self._hold_lock()
        if lock is None:
            return "a cluster is up already (python -m tests.slurm.hosts down)"
        os.close(lock)
        return None

    def up(self, num_hosts: int = 3) -> None:
        """Start the cluster and wait until Slurm has all hosts.

        Raises:
            RuntimeError: a cluster is up and stays up for 10 s, or a host does not start.
            TimeoutError: Slurm does not have all hosts in time; with the controller's last words.

        """
        try:  # processes that were just killed still hold the lock for a moment
            wait_for(self._take_lock, 10)
        except TimeoutError:
            raise RuntimeError("a cluster is up already") from None
        self._remove()  # what a killed one left
        self._configure(num_hosts)
        _do("ip", "netns", "add", _SWITCH)
        _do("ip", "-n", _SWITCH, "link", "add", "br0", "type", "bridge")
        _do("ip", "-n", _SWITCH, "link", "set", "br0", "up")
        names = [f"h{k}" for k in range(1, num_hosts + 1)]
        for name in (CONTROLLER, *names):
            self._boot(name)
        try:
            wait_for(lambda: self.states() == dict.fromkeys(names, "idle"), 60)
        except TimeoutError:
            log = self.folder / "log/slurmctld"
            said = log.read_text(errors="replace")[-1000:] if log.exists() else "no log"
            raise TimeoutError(f"hosts are {self.states()} after 60 s; slurmctld: {said}") from None

    def is_up(self, num_hosts: int = 3) -> bool:
        """Whether process 1 of the controller and of each host runs."""
        return all(self._alive(name) for name in (CONTROLLER, *(f"h{k}" for k in range(1, num_hosts + 1))))

    def words(self, name: str, *command: object, cwd: Path | None = None) -> list[str]:
        """Return the words that run a command on a host; whoever ends them, ends the command."""
        process = self._alive(name)
        if process is None:
            raise RuntimeError(f"host {name} is not up")
        enter = ["nsenter", "--target", process, "--net", *_NAMESPACES, "--", "env", f"--chdir={cwd or Path.cwd()}"]
        return [*enter, "setpriv", "--pdeathsig", "TERM", *map(str, command)]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands on the hosts: ours, without that of a Slurm or MPI job around us."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMI"))}
        return kept | {"SLURM_CONF": str(self.folder / "etc/slurm.conf"), "PATH": _path()}

    def run(self, *command: object, cwd: Path | None = None, timeout: float = 60, **variables: str) -> Done:
        """Run a command on the controller; standard output and error come as one text."""
        return self._run(self.words(CONTROLLER, *command, cwd=cwd), cwd, timeout, variables)

    def node(self, k: int, *command: object, cwd: Path | None = None, timeout: float = 60, **variables: str) -> Done:
        """Run a command on a host, outside Slurm."""
        return self._run(self.words(f"h{k}", *command, cwd=cwd), cwd, timeout, variables)

    def mpirun(self, *words: object, cwd: Path | None = None, timeout: float = 60, **variables: str) -> Done:
        """Run OpenMPI's mpirun over hosts (``--host h1,h2``), outside Slurm and without ssh."""
        return self._run(self.mpirun_words(*words), cwd, timeout, variables)

    def mpirun_words(self, *words: object) -> list[str]:
        """Return the words of an mpirun: in the controller's network, but as a process of the machine, to reach all."""
        agent = f"{sys.executable} {Path(__file__).resolve()} rsh"
        names = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return [
            "nsenter", f"--net=/run/netns/{_PREFIX}{CONTROLLER}", "unshare", "--mount",
            "sh", "-c", names, str(self.folder / "etc/hosts"),
            "mpirun", "--allow-run-as-root", "--mca", "plm_rsh_agent", agent, *map(str, words),
        ]  # fmt: skip

    def open_process(self, name: str, number: int) -> int:
        """Return a file descriptor of a host's process, for ``signal.pidfd_send_signal``.

        Raises:
            ProcessLookupError: the host has no process of this number.

        """
        space = Path("/proc", self._alive(name) or "none", "ns/pid")
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                (within,) = re.findall(r"^NSpid:.*\t(\d+)$", (path / "status").read_text(), re.MULTILINE)
                if int(within) == number and (path / "ns/pid").readlink() == space.readlink():
                    return os.pidfd_open(int(path.name))
        raise ProcessLookupError(f"{name} has no process {number}")

    def jobs(self) -> range:
        """Return the numbers that this cluster gives its jobs."""
        first = int((self.folder / "first-job").read_text())
        return range(first, first + _JOBS)

    def states(self) -> dict[str, str]:
        """State of each host as Slurm sees it (``idle``, ``allocated``, ``down*``, …); empty before it answers."""
        answer = self.run("sinfo", "--noheader", "--Node", "--partition=mixed", "--format=%N %T")
        return dict(line.split() for line in answer.stdout.splitlines()) if answer.returncode == 0 else {}

    def idle(self) -> bool:
        """Whether all hosts are."""
        return set(self.states().values()) == {"idle"}

    def cut(self, k: int) -> None:
        """Pull a host's network cable."""
        _do("ip", "-n", _SWITCH, "link", "set", f"h{k}", "down")

    def heal(self, k: int) -> None:
        """Put it back."""
        _do("ip", "-n", _SWITCH, "link", "set", f"h{k}", "up")

    def kill(self, k: int, *, loud: bool = False) -> None:
        """Take a host's power: nobody hears of it. ``loud``: its processes end, its kernel closes their connections."""
        if not loud:
            self.cut(k)
        self._kill(f"h{k}")
        if not loud:
            self._unwire(f"h{k}")

    def boot(self, k: int) -> None:
        """Start a host again."""
        self._boot(f"h{k}")

    def down(self) -> None:
        """End all that was started and remove its files."""
        self._remove()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def rsh(self, address: str, *command: str) -> NoReturn:
        """Stand in for ssh."""
        name = f"h{address.rpartition('.')[2]}" if address.startswith(f"{NETWORK}.") else address
        self.become(self.words(name, "sh", "-c", " ".join(command)))

    def become(self, words: list[str]) -> NoReturn:
        """Go on as these words, with our terminal."""
        os.execvpe(words[0], words, self.environment)

    def be_host(self, name: str) -> NoReturn:
        """Be process 1 of a host."""
        number = Path("/proc/self").readlink().name  # while /proc is the machine's: our number there
        started = _start_time(number)
        socket.sethostname(name)
        freezer = self.folder / "cgroup/freezer"  # a mount of our own: the machine need not have one
        _do("mount", "-t", "proc", "proc", "/proc")
        _do("mount", "-t", "cgroup", "-o", "freezer", "freezer", freezer)
        _do("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
        _do("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp/ray")
        _do("mount", "--bind", self.folder / "etc/hosts", "/etc/hosts")
        munge = self.folder / "munge"
        if name == CONTROLLER:
            subprocess.Popen([
                "munged", "--force", "--foreground", f"--socket={munge}/socket", f"--key-file={munge}/key",
                f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
            ])  # fmt: skip
        wait_for((munge / "socket").exists, 30)
        record = self.folder / f"{name}.new"
        record.write_text(f"{number} {started}")
        record.rename(self._record(name))
        subprocess.Popen(["slurmctld", "-D"] if name == CONTROLLER else ["slurmd", "-D", "-N", name])
        while True:  # bury what others leave behind
            try:
                os.wait()
            except ChildProcessError:
                time.sleep(1)

    def _hold_lock(self) -> int | None:
        lock = os.open(self.folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _take_lock(self) -> bool:
        """Hold the lock from now on; all processes 1 inherit it and hold it until the last one ends."""
        lock = self._hold_lock()
        if lock is not None:
            self._lock = lock
        return lock is not None

    def _configure(self, num_hosts: int) -> None:
        for name in ("etc", "log", "state", "munge", "hosts", "cgroup/freezer"):
            (self.folder / name).mkdir(parents=True)
        first_job = random.randrange(1, 6_000) * _JOBS  # not that of the last cluster, or of another that is up
        (self.folder / "first-job").write_text(str(first_job))
        memory = int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 / num_hosts)
        hosts = range(1, num_hosts + 1)
        alike = [f"h{k}" for k in hosts[:2]]
        gives = [f"CPUs={self.cpus if k < 3 else 1} RealMemory={memory}{' Gres=gpu:1' * (k < 3)}" for k in hosts]
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text(
            _SLURM_CONF.format(
                network=NETWORK,
                folder=self.folder,
                first_job=first_job,
                slurmd_timeout=self.slurmd_timeout,
                memory_per_cpu=memory // self.cpus,
                alike=",".join(alike),
                nodes="\n".join(f"NodeName=h{k} NodeAddr={NETWORK}.{k} {gives[k - 1]}" for k in hosts),
            )
        )
        (etc / "gres.conf").write_text(f"AutoDetect=off\nNodeName={','.join(alike)} Name=gpu File=/dev/null\n")
        (etc / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\n")
        (etc / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")  # /tmp is common to the hosts
        names = [f"{NETWORK}.254 {CONTROLLER}", *(f"{NETWORK}.{k} h{k}" for k in hosts)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (self.folder / "munge/key").touch(0o600)
        (self.folder / "munge/key").write_bytes(os.urandom(1024))

    def _boot(self, name: str) -> None:
        """Raise RuntimeError where its process 1 ends instead."""
        if self._alive(name):
            return
        space = f"{_PREFIX}{name}"
        if not Path("/run/netns", space).exists():
            self._wire(name)
        Path("/tmp/ray").mkdir(exist_ok=True)
        self._record(name).unlink(missing_ok=True)
        tied = [] if self._keep else ["setpriv", "--pdeathsig", "KILL"]
        log = self.folder / "log" / name
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*tied, "nsenter", f"--net=/run/netns/{space}", "unshare", *_NAMESPACES, "--fork", "--kill-child",
                 sys.executable, str(Path(__file__).resolve()), "be-host", name],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=[] if self._lock is None else [self._lock], cwd="/",
            )  # fmt: skip
        self._started.append(process)
        wait_for(lambda: self._record(name).exists() or process.poll() is not None, 60)
        if process.poll() is not None:
            raise RuntimeError(f"host {name} did not start: {log.read_text(errors='replace')[-500:]}")

    def _wire(self, name: str) -> None:
        space = f"{_PREFIX}{name}"
        number = 254 if name == CONTROLLER else int(name[1:])
        _do("ip", "netns", "add", space)
        _do("ip", "-n", _SWITCH, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        _do("ip", "-n", _SWITCH, "link", "set", name, "master", "br0", "up")
        _do("ip", "-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _do("ip", "-n", space, "link", "set", device, "up")

    def _unwire(self, name: str) -> None:
        _try("ip", "-n", _SWITCH, "link", "del", name)  # at once: a namespace goes when its last user has gone
        _do("ip", "netns", "del", f"{_PREFIX}{name}")

    def _kill(self, name: str) -> None:
        """End a host's process 1, and with it all its processes; remove what their control groups leave."""
        if process := self._alive(name):
            os.kill(int(process), signal.SIGKILL)
            wait_for(lambda: not self._alive(name), 30)
        self._record(name).unlink(missing_ok=True)
        self._started = [process for process in self._started if process.poll() is None]
        jobs = self.jobs()
        remove = ("unshare", "--mount", "sh", "-c", _REMOVE_GROUPS, self.folder / "cgroup/freezer", name)
        wait_for(lambda: _try(*remove, jobs.start, jobs.stop).returncode == 0, 30)

    def _remove(self) -> None:
        for record in sorted(self.folder.glob("hosts/*")):
            self._kill(record.name)
        for process in self._started:  # those that were not even recorded
            process.kill()
            process.wait()
        for space in Path("/run/netns").glob(f"{_PREFIX}*"):
            _do("ip", "netns", "del", space.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, name: str) -> Path:
        return self.folder / "hosts" / name

    def _alive(self, name: str) -> str | None:
        """Return the number of a host's process 1, unless it is gone, or that number another process's by now."""
        with suppress(OSError, ValueError):
            process, started = self._record(name).read_text().split()
            if _start_time(process) == started:
                return process
        return None

    def _run(self, words: list[str], cwd: Path | None, timeout: float, variables: dict[str, str]) -> Done:
        return subprocess.run(
            words, env=self.environment | variables, cwd=cwd, timeout=timeout, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_for(condition: Callable[[], object], seconds: float) -> float:
    """Wait until a condition holds; returns the seconds that it took.

    Raises:
        TimeoutError: it does not hold in time.

    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - start


def _try(*words: object) -> Done:
    return subprocess.run(
        [str(word) for word in words], env=os.environ | {"PATH": _path()}, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _do(*words: object) -> None:
    done = _try(*words)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout.strip()}")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _start_time(process: str) -> str | None:
    fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]  # a zombie has ended, may nobody bury it


def main(words: list[str]) -> None:
    """Do what the words say (see above)."""
    hosts = Hosts(keep=True)
    match words:
        case ["up", *number] if len(number) < 2:
            hosts.up(int(number[0]) if number else 3)
            print(hosts.run("sinfo").stdout, end="")
        case ["run", *command]:
            hosts.become(hosts.words(CONTROLLER, *(command or ["bash"])))
        case ["node", k, *command]:
            hosts.become(hosts.words(f"h{k}", *(command or ["bash"])))
        case ["mpirun", *command]:
            hosts.become(hosts.mpirun_words(*command))
        case ["rsh", address, *command]:
            hosts.rsh(address, *command)
        case ["cut" | "heal" | "boot" | "kill" as verb, k]:
            getattr(hosts, verb)(int(k))
        case ["kill", k, "loud"]:
            hosts.kill(int(k), loud=True)
        case ["status"]:
            hosts.become(hosts.words(CONTROLLER, "sinfo", "--Node", "--long"))
        case ["down"]:
            hosts.down()
        case ["be-host", name]:
            hosts.be_host(name)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"hosts: {error}")
