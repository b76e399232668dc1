"""The lock of a work folder: one holder at a time, and none that outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.workspace import held

HOLD = """
import sys
from pathlib import Path
from pipelines.errors import UsageError
from pipelines.workspace import held
sys.stdin.readline()
try:
    with held(Path(sys.argv[1])):
        print("in", flush=True)
        sys.stdin.readline()
except UsageError:
    print("refused", flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder between two lines of its stdin, and says 'in' or 'refused'."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


RUSH = """
import os, sys
from pathlib import Path
from pipelines.errors import UsageError
from pipelines.workspace import held
folder, inside, entered = Path(sys.argv[1]), Path(sys.argv[1] + ".inside"), 0
sys.stdin.readline()
for _ in range(1500):
    try:
        with held(folder):
            inside.touch(exist_ok=False)  # fails where another process is in
            entered += 1
            inside.unlink()
    except UsageError:
        pass
print(entered)
"""


def test_of_processes_that_rush_for_it_one_at_a_time_gets_in(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUSH, str(tmp_path / "w")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in processes:
        tell(process)
    answers = [p.communicate(timeout=120) for p in processes]
    assert [err for _, err in answers] == ["", "", ""]
    assert sum(int(out) for out, _ in answers) > 0
    assert not list(tmp_path.iterdir())


def test_of_processes_that_hold_on_to_it_one_gets_in(tmp_path: Path) -> None:
    processes = [start(tmp_path / "w") for _ in range(3)]
    for process in processes:
        tell(process)
    assert sorted(answer(p) for p in processes) == ["in", "refused", "refused"]
    for process in processes:
        process.communicate("\n", timeout=60)
    assert not (tmp_path / "w.lock").exists()


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "w")
    tell(process)
    assert answer(process) == "in"
    with pytest.raises(UsageError, match=f"process {process.pid} on"), held(tmp_path / "w"):
        pass
    process.kill()
    process.communicate(timeout=60)
    assert (tmp_path / "w.lock").exists()
    with held(tmp_path / "w"):
        pass


def test_the_same_process_does_not_enter_twice(tmp_path: Path) -> None:
    with held(tmp_path / "w"):
        with pytest.raises(UsageError, match="another run"), held(tmp_path / "w"):
            pass
        with held(tmp_path / "other"):
            pass
    with held(tmp_path / "w"):
        pass


def test_threads_never_hold_it_together(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(200):
            try:
                with held(tmp_path / "w"):
                    with guard:
                        inside[0] += 1
                        entered[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(1e-4)  # lets the others in, if it lets them
                    with guard:
                        inside[0] -= 1
            except UsageError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert entered[0] > 0


def test_without_locks_of_the_system_the_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = tmp_path / "w.lock"
    with held(tmp_path / "w"):
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"), held(tmp_path / "w"):
            pass
        left = lock.read_text()
    assert not lock.exists()
    lock.write_text(left.replace(str(os.getpid()), "999999999"))
    with pytest.raises(UsageError, match="no longer lives"), held(tmp_path / "w"):
        pass
    lock.unlink()
    with held(tmp_path / "w"):
        pass


@pytest.mark.parametrize(("number", "exit_code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 5)])
def test_a_lock_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipelines.workspace.os.open", refused)
    with pytest.raises(Exception, match=os.strerror(number)) as caught, held(tmp_path / "w"):
        pass
    assert caught.value.exit_code == exit_code
