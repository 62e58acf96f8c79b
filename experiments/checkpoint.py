"""Checkpoints of the train state and the host's counters: the last few and the best.

A step's directory appears only when it is complete, so a kill at any moment leaves the
checkpoints before it. Writing goes on in the background while training does.
"""

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging as absl_logging
from orbax.checkpoint import checkpoint_managers

from experiments import distributed, metrics
from experiments.errors import UserError


@dataclasses.dataclass
class Counters:
    """What the host knows of a run; a part of each checkpoint."""

    step: int = 0
    sums: metrics.Sums = dataclasses.field(default_factory=dict)  # not yet logged
    timed_steps: int = 0  # those that `training_seconds` covers
    training_seconds: float = 0.0  # without compiling, evaluating and saving
    waiting_seconds: float = 0.0  # of those, for the next batch
    elapsed_seconds: float = 0.0
    validation: dict[str, Any] | None = None  # the latest, with its step
    best: dict[str, Any] | None = None  # the first best of them

    def seconds_per_step(self) -> float:
        """Return the mean time of a training step; 0 before it can be told."""
        return self.training_seconds / self.timed_steps if self.timed_steps else 0.0

    def input_wait_share(self) -> float:
        """Return the share of the training time in which no batch was ready."""
        return self.waiting_seconds / self.training_seconds if self.timed_steps else 0.0


class DamagedError(Exception):
    """A checkpoint whose files are missing or cut short."""


@dataclasses.dataclass
class LastAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the last checkpoints and the one of `best_step`."""

    last: int
    best_step: int | None = None

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        first_kept = len(checkpoints) - self.last
        return [
            index >= first_kept or checkpoint.step == self.best_step
            for index, checkpoint in enumerate(checkpoints)
        ]


class _Manager(ocp.CheckpointManager):
    """Leaves pre-emption to the loop: orbax asks for it again, under older steps."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run. Every process makes the same calls.

    Args:
      directory: made if need be.
      keep_last: how many to keep besides the best.
      read_only: leave alone what another process may be writing.
      say: prints a line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 1,
        read_only: bool = False,
        say: Callable[[str], None] = print,
    ):
        # Failures are raised, and worded here.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._directory = directory
        self._read_only = read_only
        self.say = say
        self._policy = LastAndBest(keep_last)
        self._manager = _Manager(
            directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "host": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, state: Any, counters: Counters) -> None:
        """Begin to save; returns when `state` may be donated.

        Raises:
          UserError: this save, or the one before it, could not be written.
        """
        self._policy.best_step = counters.best["step"] if counters.best else None
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            host=ocp.args.JsonSave(dataclasses.asdict(counters)),
        )
        self._guard(lambda: self._manager.save(counters.step, args=args, force=True))

    def wait(self) -> None:
        """Return when what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def _guard(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (OSError, ValueError, RuntimeError) as error:
            with contextlib.suppress(Exception):  # an earlier one may be on its way
                self._manager.wait_until_finished()
            complete = [p.name for p in self._directory.iterdir() if p.name.isdigit()]
            last = max(map(int, complete), default=None)
            kept = "none before it" if last is None else f"that of step {last} is kept"
            raise UserError(
                f"a checkpoint could not be written to {self._directory} "
                f"({_reason(error)}); {kept}: make room, then give the command again"
            ) from error

    def restore_latest(self, target: Any) -> tuple[Any, Counters] | None:
        """Return (state, counters) of the newest readable checkpoint, if there is one.

        Damaged ones are moved aside to `unreadable/`, with a line about each.

        Raises:
          UserError: none can be read, or they belong to another model.
        """
        steps = self.steps()
        while steps:
            step = steps.pop()
            try:
                return self._read(step, target)
            except DamagedError as error:
                if not steps:
                    raise UserError(
                        f"{error}, and there is none before it: remove "
                        f"{self._directory.parent} to start again"
                    ) from error
                self.say(f"{error}; going back to checkpoint {steps[-1]}")
                self._set_aside(step)
        return None

    def restore(self, step: int, target: Any) -> tuple[Any, Counters]:
        """Return (state, counters) of one checkpoint, laid out as the target is.

        Raises:
          UserError: it is damaged, or belongs to another model.
        """
        try:
            return self._read(step, target)
        except DamagedError as error:
            raise UserError(f"{error}: remove {self._directory}/{step}") from error

    def _read(self, step: int, target: Any) -> tuple[Any, Counters]:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore()
        )
        try:
            _read_through(self._directory / str(step) / "state")
            self._check_arrays(step, target)
            restored = self._manager.restore(step, args=args)
        except UserError:
            raise
        except Exception as error:  # orbax promises no type for damaged files
            raise DamagedError(
                f"checkpoint {step} in {self._directory} cannot be read "
                f"({_reason(error)})"
            ) from error
        return restored.state, Counters(**restored.host)

    def _check_arrays(self, step: int, target: Any) -> None:
        """Compare with the target: orbax would cast another dtype without a word."""
        metadata = self._manager.item_metadata(step).state
        if metadata is None:
            raise FileNotFoundError("the metadata of its arrays are missing")
        saved = _arrays(metadata)
        wanted = _arrays(target)
        for path in sorted(saved.keys() | wanted.keys()):
            there, here = saved.get(path, "absent"), wanted.get(path, "absent")
            if there != here:
                raise UserError(
                    f"checkpoint {step} in {self._directory} holds another model: "
                    f"{path} is {there} there, {here} here. Choose another --workdir"
                )

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        distributed.barrier("unreadable checkpoint seen")
        if distributed.is_main():
            aside = self._directory.parent / "unreadable"
            aside.mkdir(exist_ok=True)
            taken = len(list(aside.glob(f"{step}.*")))
            (self._directory / str(step)).rename(aside / f"{step}.{taken}")
        distributed.barrier("unreadable checkpoint set aside")
        self._manager.reload()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        self._guard(self._manager.close)


def _read_through(directory: Path) -> None:
    """Read everything in turn, so that damage shows as one exception.

    orbax reads all arrays at once; when one fails, the others print tracebacks.
    """
    for pattern in ("_*", "array_metadatas/*"):
        for path in directory.glob(pattern):
            json.loads(path.read_bytes())
    base = {"driver": "file", "path": f"{directory}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    if not keys:
        raise FileNotFoundError("its arrays are missing")
    for key in keys:
        store.read(key).result()


def _arrays(tree: Any) -> dict[str, str]:
    """Return path -> dtype and shape; tuples and dicts spell their paths alike."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reason(error: BaseException) -> str:
    """Return the last causes in the first line of an error, less their annotations."""
    lines = str(error).splitlines() or [type(error).__name__]
    return ": ".join(lines[0].partition(" [")[0].split(": ")[-2:])


@contextlib.contextmanager
def one_failure_told() -> Iterator[None]:
    """Keep quiet about the other arrays when one cannot be written.

    orbax writes all arrays at once and raises the first failure; the others print
    tracebacks from an event loop that is closed by then.
    """
    hook = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = hook
