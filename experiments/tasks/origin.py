"""Where the rows of a task come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data import builders
from experiments.data.rows import Rows

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """Files, or a generator and its settings.

    Attributes:
      name: of the task with these rows.
      provenance: see `Task`.
      folder: of the prepared rows; other settings or files have another one.
      make: what makes the rows of each split.
      about: settings for the manifest.
    """

    name: str
    provenance: str
    folder: str
    make: Callable[[], dict[str, Rows]]
    about: Facts

    def path(self, cache_dir: str) -> Path:
        """Return the folder of the prepared rows."""
        return Path(cache_dir).expanduser() / self.name / self.folder

    def load(
        self, cache_dir: str, measure: Callable[[Mapping[str, Rows]], Facts]
    ) -> dict[str, Rows]:
        """Return the rows of each split, prepared at first use.

        Args:
          cache_dir: where prepared rows are kept.
          measure: what to put in the manifest about the rows.
        """
        folder = self.path(cache_dir)
        about = {"task": self.name, "provenance": self.provenance, **self.about}

        def make() -> dict[str, Rows]:
            splits = self.make()
            about.update(measure(splits))  # it is written after the rows
            return splits

        if not builders.is_prepared(folder):
            builders.prepare(folder, make, about)
        return builders.load(folder)
