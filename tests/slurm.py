"""A Slurm of one node in a folder: its own munge, controller and node daemon, without systemd and without cgroups."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "srun")
"""Debian: slurm-wlm and munge."""

WAIT_S = 30.0
"""Longest wait for a daemon."""

KILL_WAIT_S = 5
"""From SIGTERM to SIGKILL of a cancelled job."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class SlurmError(RuntimeError):
    """Slurm cannot run here."""


@dataclass(frozen=True)
class Slurm:
    """A running cluster. environment: what its client programs need."""

    environment: dict[str, str]

    def call(self, *command: object, cwd: Path | None = None, **environment: str) -> str:
        """What a program prints; RuntimeError with its errors if it fails."""
        done = subprocess.run(
            [str(c) for c in command],
            env={**self.environment, **environment}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout.strip()

    def states(self, job: str) -> dict[str, str]:
        """State of a job, or of each task of an array that has its own record already, by its id (like 7, 7_3)."""
        rows = self.call("squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={job}").splitlines()
        return dict(row.split() for row in rows)  # type: ignore[misc]

    def wait(self, job: str, states: tuple[str, ...] = ENDED, timeout_s: float = 120) -> dict[str, str]:
        """States of a job once all of its tasks are in `states`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.states(job)
            if all(state in states for state in found.values()):
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {found} after {timeout_s:.0f} s")
            time.sleep(0.1)


@contextmanager
def single_node(folder: Path) -> Iterator[Slurm]:
    """Slurm with this machine as its node, until the block ends. Raises SlurmError if it cannot start."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SlurmError(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        raise SlurmError("its daemons need root")
    for name in ("key", "state", "spool", "log"):
        (folder / name).mkdir(mode=0o700 if name == "key" else 0o755)
    with ExitStack() as stack:
        _munge(folder, stack)
        configured = _configure(folder)
        slurm = Slurm({**os.environ, "SLURM_CONF": str(configured), "PATH": _path(folder, configured)})
        for daemon in ("slurmctld", "slurmd"):
            _start([daemon, "-D"], folder, stack, slurm.environment)
        stack.callback(_cancel_all, slurm)  # before the daemons end
        _until(lambda: slurm.call("sinfo", "--noheader", "--format=%T") == "idle", folder, "the node is not idle")
        yield slurm


def _munge(folder: Path, stack: ExitStack) -> None:
    """An authentication service beside the system's own, if there is one."""
    key, socket_path = folder / "key" / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "key" / "log").mkdir(mode=0o700)
    command = ["munged", "--foreground", "--force", f"--socket={socket_path}", f"--key-file={key}"]
    command += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/key/log/munged.log"]
    _start([*command, f"--seed-file={folder}/key/munged.seed"], folder, stack, dict(os.environ))
    _until(socket_path.exists, folder, "munge does not listen")


def _configure(folder: Path) -> Path:
    """The path of slurm.conf, with ports that are free now."""
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    # older versions know no 'disabled', and touch no cgroup as long as no plugin below asks for one
    newer = tuple(int(part) for part in version.split(".")[:2]) >= (23, 11)
    plugin = "CgroupPlugin=disabled\n" if newer else "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
    (folder / "cgroup.conf").write_text(plugin)
    host, cores = socket.gethostname().split(".")[0], max(4, os.cpu_count() or 1)
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
    ports = _free_ports(2)
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "SlurmUser": "root",
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5",  # a requeued job waits so long; less is not taken
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SchedulerParameters": "sched_interval=1,sched_min_interval=50000,bf_interval=1,batch_sched_delay=0",
        "KillWait": KILL_WAIT_S,
        "ReturnToService": 2,
        "MinJobAge": 600,  # ended jobs can be asked for until the tests are over
        "SlurmdParameters": "config_overrides",  # at least 4 cores: the tests need jobs side by side, not speed
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={cores} CoresPerSocket={cores} RealMemory={memory_mb}",
        "PartitionName": f"main Nodes={host} Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500",
    }
    path = folder / "slurm.conf"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return path


def _path(folder: Path, configured: Path) -> str:
    """PATH with an srun that finds slurm.conf in a bare environment, as it does where that lies in /etc."""
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configured} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    return f"{srun.parent}:{os.environ['PATH']}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _start(command: list[str], folder: Path, stack: ExitStack, environment: dict[str, str]) -> None:
    """A daemon in the foreground, ended with the stack."""
    log = stack.enter_context((folder / "log" / f"{command[0]}.out").open("w"))
    command = ["setpriv", "--pdeathsig", "TERM", *command]  # nothing outlives tests that are killed
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def _until(ready: object, folder: Path, what: str) -> None:
    """Wait until `ready()`; SlurmError with the ends of the logs if it takes too long."""
    assert callable(ready)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except RuntimeError:  # the controller does not answer yet
            pass
        time.sleep(0.1)
    ends = [f"{path.name}: {path.read_text()[-500:]}" for path in sorted(folder.glob("**/*.log"))]
    raise SlurmError("\n".join((f"{what} after {WAIT_S:.0f} s", *ends)))


def _cancel_all(slurm: Slurm) -> None:
    """End the jobs that a failed test has left, before the daemons that know them."""
    try:
        slurm.call("scancel", "--user=root")
        deadline = time.monotonic() + 2 * KILL_WAIT_S + 5
        while slurm.call("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.1)
    except (RuntimeError, subprocess.TimeoutExpired):
        return  # the controller has not even started
