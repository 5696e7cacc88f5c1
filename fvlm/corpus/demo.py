"""The demo corpus: an animated film, fetched once from a package and cut into clips.

Big Buck Bunny, (c) copyright 2008, Blender Foundation / www.bigbuckbunny.org, CC-BY-3.0; from the
source distribution of moviepy 2.2.1. It is fetched with pip, so that the user's package index and
proxy hold; pip checks the archive's hash before it runs anything of it.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from fvlm.core.errors import SourceError
from fvlm.core.io import atomic_write, cache_folder, hash_json, iterate_jsonl
from fvlm.corpus.built import build_once
from fvlm.corpus.demo_clips import CLIPS

PACKAGE = "moviepy==2.2.1"
SDIST = "moviepy-2.2.1.tar.gz"
SDIST_SHA256 = "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
ARCHIVE = (
    "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
)
FILM = "moviepy_10_minutes/resources/bbb.mp4"
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"

QUESTIONS = Path(__file__).with_name("demo_questions.jsonl")

FETCH_SECONDS = 1200.0  # 58 MB at 50 KB/s


def demo_folder() -> Path:
    """The folder of the clips; fetches and cuts the film when they are missing or damaged.

    Raises SourceError, which names `collect.source`, when the film cannot be fetched.
    """
    return build_once(cache_folder() / "demo" / film_version(), clip_names(), _build)


def clip_names() -> list[str]:
    """File names of the clips, in the film's order."""
    return [f"big-buck-bunny-{number:02d}.mp4" for number in range(1, len(CLIPS) + 1)]


def demo_captions() -> dict[str, str]:
    """The caption of each clip, by file name."""
    return {name: clip.caption for name, clip in zip(clip_names(), CLIPS, strict=True)}


def demo_questions() -> dict[str, list[dict[str, Any]]]:
    """The questions about each clip, by file name; written from the frames, as captions are.

    Each has a wrong option as its rejected answer.

    Left and right are those of the picture, whose centre square was looked at.
    """
    asked = defaultdict[str, list[dict[str, Any]]](list)
    for _, row in iterate_jsonl(QUESTIONS):
        wrong = row["options"].index(row["answer"]) - 1  # the option in front of it, or the last
        asked[row.pop("video")].append(row | {"rejected": row["options"][wrong]})
    return dict(asked)


def fetch_sdist(folder: Path, *, pip: tuple[str, ...] = (sys.executable, "-m", "pip")) -> Path:
    """Download the source distribution that carries the film; pip verifies its sha256."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    command = [*pip, "download", "--quiet", "--no-deps", "--no-binary", "moviepy", "--retries", "2"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _fetch_error(f"pip took longer than {FETCH_SECONDS:.0f} s") from None
    if result.returncode != 0 or not (folder / SDIST).is_file():
        raise _fetch_error("\n".join(result.stdout.splitlines()[-5:]))
    return folder / SDIST


def extract_film(sdist: Path, folder: Path) -> Path:
    """Take the film out of the zip inside the source distribution, and check its sha256."""
    try:
        with tarfile.open(sdist) as outer:
            member = outer.extractfile(ARCHIVE)
            assert member is not None
            with zipfile.ZipFile(io.BytesIO(member.read())) as inner:
                content = inner.read(FILM)
    except (tarfile.TarError, zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise _fetch_error(f"{sdist.name} does not hold the film: {error}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILM_SHA256:
        raise _fetch_error(f"{FILM} has sha256 {digest}, expected {FILM_SHA256}")
    film = folder / "film.mp4"
    with atomic_write(film) as file:
        file.write(content)
    return film


def _build(folder: Path) -> None:
    # PyAV is only needed here, and costs more time to import than all of `collect` takes.
    from fvlm.corpus.cut import cut_film

    print(f"demo: fetching Big Buck Bunny from {PACKAGE} (58 MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        film = extract_film(fetch_sdist(Path(temporary)), Path(temporary))
        clips = [folder / name for name in clip_names()]
        cut_film(film, starts=[clip.start for clip in CLIPS], targets=clips)


def film_version() -> str:
    """Another film or other cuts live in another folder; new captions do not."""
    return hash_json([FILM_SHA256, [clip.start for clip in CLIPS]])[:12]


def _fetch_error(cause: str) -> SourceError:
    return SourceError(
        f"the demo film cannot be fetched from the package {PACKAGE}:\n{cause}\n"
        "Check the network or pip's index settings, or set collect.source in params.yaml to a "
        "folder of your own videos or a list of them."
    )
