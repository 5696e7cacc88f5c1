"""Stages run in folders of their own, each a small project with its own params.yaml.

A folder is made once: `done.json` tells of which stages, parameters and weights, and of which code
and libraries these stand on: an edit of the report trains nothing anew.
Folders are made side by side; when one fails, or the command is stopped, the stages under way are
stopped too (training saves its state then, and goes on from it in the next run).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fvlm.cli.rules import Sections
from fvlm.core.device import auto_dtype
from fvlm.core.errors import FvlmError
from fvlm.core.identity import made_by
from fvlm.core.io import hash_json, read_json, sha256_file, write_json
from fvlm.core.params import PARAMS, overlay_params
from fvlm.core.progress import Progress

ROOT = Path(__file__).resolve().parents[2]  # of this code
ASSETS = Path("assets")
LOG_LINES = 12  # of a failed stage
Changes = dict[str, dict[str, Any]]


class Folders:
    """Makes folders under the current one; their params.yaml is its own with `preset` over it.

    roots: functions that `first` and `then` of `make` call.
    """

    def __init__(self, preset: Path, *roots: Callable[..., Any]) -> None:
        self._preset, self._roots = preset, roots
        weights = [path for path in ASSETS.rglob("*") if path.is_file()]
        self._weights = hash_json([sha256_file(path) for path in sorted(weights)])
        self._running = set[subprocess.Popen[bytes]]()
        self._lock, self._stopped = threading.Lock(), False

    def make(
        self,
        folder: Path,
        changes: Changes,
        links: dict[Path, Path],
        stages: list[str],
        *,
        first: Callable[[Path], None] = lambda _: None,
        then: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Run `first`, `stages` in `folder`, and `then`, unless that was done before.

        changes: parameters in which this folder differs; links: paths in it to what exists already.
        Raises FvlmError with the last lines that a failed stage printed.
        """
        done = folder / "done.json"
        self._write_params(folder, changes)
        recipe = {
            "made_by": made_by(*self._roots, *(f"pipeline.{stage}:main" for stage in stages)),
            "weights": self._weights,
            "params": sha256_file(folder / PARAMS),
            "stages": stages,
        }
        if done.is_file() and read_json(done) == recipe:
            return
        done.unlink(missing_ok=True)
        for link, target in {ASSETS: ASSETS, **links}.items():
            _link(folder / link, target)
        first(folder)
        for stage in stages:
            self._run(stage, folder)
        then(folder)
        write_json(done, recipe)

    def side_by_side(
        self,
        work: Callable[..., None],
        calls: Iterable[tuple[Any, ...]],
        count: int,
        progress: Progress,
    ) -> None:
        """Call `work` for each, `count` at a time; the first error, or SIGTERM, stops them all."""
        with ThreadPoolExecutor(count) as executor, _terminated_as_exit():
            running = [executor.submit(work, *arguments) for arguments in calls]
            try:
                for future in as_completed(running):
                    future.result()
                    progress.advance()
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise

    def _run(self, stage: str, folder: Path) -> None:
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FVLM_TRACKING": "off"}
        environment = {**os.environ, **settings}
        environment.pop("DVC_ROOT", None)  # the folder is a project of its own
        log = folder / f"{stage}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", f"pipeline.{stage}"]
            with self._lock:
                if self._stopped:
                    raise FvlmError(f"{stage} was not begun in {folder}")
                process = subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.remove(process)
        if code != 0:
            lines = log.read_text(errors="backslashreplace").splitlines()[-LOG_LINES:]
            raise FvlmError("\n".join([f"{stage} failed in {folder} (exit code {code}):", *lines]))

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _write_params(self, folder: Path, changes: Changes) -> None:
        """params.yaml of a folder: the project's, the preset and what makes this folder differ."""
        folder.mkdir(parents=True, exist_ok=True)
        overlay = folder / "changes.yaml"
        write_json(overlay, changes)  # JSON is YAML
        (folder / PARAMS).write_bytes(PARAMS.read_bytes())
        for values in (self._preset, overlay):
            overlay_params(Sections, values, folder / PARAMS, auto_dtype=auto_dtype)


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """SIGTERM leaves the block like Ctrl-C does, instead of leaving the stages behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
