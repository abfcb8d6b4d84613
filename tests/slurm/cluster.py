"""A Slurm of one node in a folder of its own: munged, slurmctld and slurmd started from the packages of the system or
from a folder they were unpacked into (``unpack.sh``), and stopped again. Nothing outside the folder is written."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from alp.lifetime import end_with

VARIABLE = "SLURM_PACKAGES"  # a folder that holds usr/ of the unpacked packages
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare")
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
NODE, CPUS, MEMORY = "node1", 4, 16000  # MiB; more cores than the machine may have: jobs wait for one another less


def until(true: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Wait until something holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what or "it did not happen")
        time.sleep(0.05)


class Programs:
    """Where the programs lie, and what they need to run from there."""

    def __init__(self) -> None:
        packages = os.environ.get(VARIABLE)
        usr = Path(packages).resolve() / "usr" if packages else None
        search = ":".join([*([f"{usr}/bin", f"{usr}/sbin"] if usr else []), os.environ["PATH"], "/usr/sbin", "/sbin"])
        self.paths = {}
        for name in (*CLIENTS, *DAEMONS):
            # Debian's names end with -wlm, and lose that when a package is installed.
            found = shutil.which(name, path=search) or shutil.which(f"{name}-wlm", path=search)
            if found is not None:
                self.paths[name] = found
        self.missing = [name for name in (*CLIENTS, *DAEMONS) if name not in self.paths]
        if self.missing:
            return
        root = usr or Path(self.paths["slurmctld"]).resolve().parents[1]
        plugins = sorted(root.glob("lib*/**/auth_munge.so"))
        if not plugins:
            self.missing = ["the plugin auth_munge.so"]
            return
        self.plugins = plugins[0].parent
        self.environment = {"LD_LIBRARY_PATH": f"{self.plugins.parent}:{self.plugins}"} if usr else {}


class Cluster:
    """``with Cluster(programs) as cluster``: a node, the partitions cpu, gpu (with one pretended GPU) and urgent, whose
    jobs push those of the partition spare out for good. ``cluster.environment`` is for whoever submits."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="alp-slurm-"))
        self._running: list[subprocess.Popen[bytes]] = []
        self._environment = os.environ | programs.environment | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(self._configuration(), encoding="utf-8")
        self._wrap_clients()
        at = self.folder
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{key}={at / name}" for key, name in files.items()]
        self._daemon("munged", "--foreground", "--force", *options, f"--log-file={at / 'munged.log'}")
        until((at / "munge.socket").exists, what=self._log("munged"))
        self._daemon("slurmctld", "-D", "-f", str(at / "slurm.conf"))
        stepd = self._programs.paths["slurmstepd"]
        self._daemon("slurmd", "-D", "-f", str(at / "slurm.conf"), "-N", NODE, "-d", stepd)
        until(
            lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t", check=False), what=self._log("slurmctld")
        )
        self.ask("scontrol", "update", f"nodename={NODE}", "gres=gpu:1")

    def _is_up(self) -> bool:
        return "idle" in self.ask("sinfo", "--noheader", "--format=%t", check=False)

    def _configuration(self) -> str:
        """Of slurm.conf: no accounting, no cgroups, jobs of this user alone."""
        user, at = pwd.getpwuid(os.getuid()).pw_name, self.folder
        host = socket.gethostname()
        return "\n".join(
            [
                f"ClusterName=alp\nSlurmctldHost={host}(127.0.0.1)",
                f"SlurmctldPort={_free_port()}\nSlurmdPort={_free_port()}",
                f"SlurmUser={user}\nSlurmdUser={user}",
                f"AuthType=auth/munge\nCredType=cred/munge\nAuthInfo=socket={at}/munge.socket",
                f"StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\nPluginDir={self._programs.plugins}",
                f"SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid",
                f"SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log",
                "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none",
                "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\nGresTypes=gpu",
                "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none",
                "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE",
                "MinJobAge=3600\nReturnToService=2\nSlurmdParameters=config_overrides\nKillWait=60",
                f"NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY}",
                "PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10",
                "PartitionName=gpu Nodes=ALL MaxTime=INFINITE PriorityTier=10",
                "PartitionName=spare Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=0",
                "PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=20 PreemptMode=OFF",
                "",
            ]
        )

    def _wrap_clients(self) -> None:
        """The clients under their own names, each told where this Slurm is: a job step started by the workflow knows
        none of the variables that begin with SLURM_."""
        told = self._programs.environment | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        words = " ".join(f"{key}={value}" for key, value in told.items())
        for name in CLIENTS:
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nexport {words}\nexec {self._programs.paths[name]} "$@"\n', encoding="utf-8")
            path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this process, with this Slurm's clients first on the path."""
        return os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def _daemon(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as out:
            command = [self._programs.paths[name], *options]
            self._running.append(
                subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM),  # when the tests are killed
                )
            )

    def _log(self, name: str) -> str:
        path = self.folder / f"{name}.out"
        return f"{name} does not come up:\n{path.read_text(encoding='utf-8')[-2000:] if path.exists() else ''}"

    def ask(self, name: str, *words: str, check: bool = True) -> str:
        """What a client of this Slurm prints."""
        command = [str(self.folder / "bin" / name), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check).stdout

    def jobs(self, form: str, *words: str) -> list[list[str]]:
        """A row of fields for each job, ended ones as well; ``form`` as squeue's, with | between fields."""
        said = self.ask("squeue", "--noheader", "--states=all", f"--format={form}", *words)
        return [line.split("|") for line in said.splitlines()]

    def __exit__(self, *_: object) -> None:
        """Jobs first, then what was started here, last first; the folder goes with them."""
        if len(self._running) == len(DAEMONS) - 1:
            self.ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name, "--signal=KILL", "--full", check=False)
            self.ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name, check=False)
            until(lambda: not self.ask("squeue", "--noheader", check=False).strip(), 90.0, "jobs that do not end")
        for process in reversed(self._running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
