"""Experiments in DVC's queue, two at a time: each in a folder of its own, with shared state."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.projects import environment

PATIENCE_SECONDS = 900.0


def call(folder: Path, *command: str) -> str:
    """What it prints; into a file, since the queue's worker would keep a pipe open."""
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdout=output, stderr=output, check=False
        )
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, said
    return said


@pytest.mark.slow
def test_two_experiments_of_the_queue_run_side_by_side(workspace: Path) -> None:
    call(workspace, "dvc", "exp", "run", "--queue", "-S", "decode.num_frames=6,7")
    try:
        call(workspace, "dvc", "queue", "start", "-j", "2")
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            tasks = call(workspace, "dvc", "queue", "status").splitlines()
            ended = [line for line in tasks if "Success" in line or "Failed" in line]
            if len(ended) == 2 or time.monotonic() > end:
                break
            time.sleep(2)
    finally:
        call(workspace, "dvc", "queue", "stop")
    logs = [call(workspace, "dvc", "queue", "logs", line.split()[0]) for line in ended]
    assert [line for line in tasks if "Success" in line] == ended, "\n".join(logs)
    assert len(ended) == 2
    (_, *found) = json.loads(call(workspace, "dvc", "exp", "show", "--json"))
    experiments = [experiment for row in found for experiment in row["experiments"]]
    frames = {
        revision["data"]["params"]["params.yaml"]["data"]["decode"]["num_frames"]
        for experiment in experiments
        for revision in experiment["revs"]
    }
    assert frames == {6, 7}
