"""Killed over and over, a stage gets on; kills of real stages: tests/pipeline/stages."""

import os
import shutil
import signal
import time
from typing import Any


def in_child(project: Any) -> int:
    """The stage in a forked process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        project.toy.main()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_many_kills_in_a_row_still_make_progress(project: Any) -> None:
    shards = project.run()
    reference = project.out
    for name in ("data", ".state"):
        shutil.rmtree(project.folder / name)
    (project.folder / "computed.log").unlink()
    for number in range(100):
        pid = in_child(project)
        time.sleep(0.004 * number)  # a busy machine gets to its first shard late
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
    project.run()
    assert project.out == reference
    assert len(set(project.log)) == shards <= len(project.log) < 100 + shards
