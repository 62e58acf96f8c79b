"""The files of one run: written whole or not at all, and claimed by one config.

config.json       the resolved config; the run belongs to it
environment.json  versions, devices, commit and data of the latest start
parameters.txt    path, shape and optimiser group of every parameter
metrics.jsonl     every logged value, one line a step
checkpoints/      the last ones and the best
result.json       written once, at the end
failure.json      why it did not come to one, of a run among several
"""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from experiments.config import flatten, identity
from experiments.errors import UserError


class Workdir:
    """Paths and whole-file writes of one run's directory. Touches nothing by itself."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    def check_owner(self, description: Mapping[str, Any]) -> None:
        """See that the directory holds no run, or one of the described config.

        A run without a checkpoint is none: nothing would be lost.

        Raises:
          UserError: it holds a run of another config; names what differs.
        """
        theirs = self.read("config.json")
        if theirs is None or not self._has_checkpoint():
            return
        here = identity(flatten(json.loads(json.dumps(description["config"]))))
        there = identity(flatten(theirs["config"]))
        absent = "absent"
        differing = [
            f"{key} is {there.get(key, absent)!r} there, {here.get(key, absent)!r} here"
            for key in sorted(here | there)
            if here.get(key, absent) != there.get(key, absent)
        ]
        if differing:
            more = f"; and {len(differing) - 6} more keys" if len(differing) > 6 else ""
            raise UserError(
                f"{self.path} belongs to a run of another config: "
                f"{'; '.join(differing[:6])}{more}. Choose another --workdir"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep others from training here, until this process ends at the latest.

        Raises:
          UserError: another process does. Where files cannot be locked, nobody asks.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a") as file:
            if not _lock(file):
                raise UserError(
                    f"another process is training in {self.path}: wait until it ends, "
                    "or choose another --workdir"
                )
            yield

    def is_claimed(self) -> bool:
        """Whether a process is training here."""
        if not self.metrics.exists():
            return False
        with self.metrics.open() as file:  # the directory may be read-only
            return not _lock(file)

    def _has_checkpoint(self) -> bool:
        paths = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return any(path.name.isdigit() for path in paths)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in the file, or None if there is no such file.

        Raises:
          UserError: the file does not hold JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): remove it") from error

    def write(self, name: str, value: Mapping[str, Any] | str) -> None:
        """Replace a file by the text, or the object as JSON, in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
        temporary = self.path / f".{name}.partial"
        temporary.write_text(text)
        temporary.replace(self.path / name)


def _lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; False if somebody else has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def environment() -> dict[str, Any]:
    """Return what a number depends on besides the config: versions, devices, commit."""
    import jax  # late: the rest of this file is needed before jax is

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def commit() -> str | None:
    """Return the checked-out commit, with `+` if files differ from it; None if none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
