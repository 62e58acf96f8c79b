"""The values of a `config.json`, read with their types."""

from collections.abc import Mapping
from typing import Any


class HubConfig:
    """A `config.json` of which every key that is looked at is checked.

    Args:
      values: what is in the file.
      where: its path, for errors.

    All methods raise ValueError for a key that is missing or has a wrong value.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a positive integer")
        return value

    def integer_or(self, key: str, default: int) -> int:
        """A positive integer, or `default` where there is null or nothing."""
        return default if self.values.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self._required(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive number")
        return float(value)

    def fixed(self, wanted: Mapping[str, Any]) -> None:
        """Keys that may be missing, but may have no other value."""
        for key, value in wanted.items():
            if self.values.get(key, value) != value:
                raise self.wrong(key, f"{value!r}: nothing else is implemented")

    def section(self, key: str) -> "HubConfig":
        """The values below a key; none where there is null or nothing."""
        values = self.values.get(key) or {}
        if not isinstance(values, Mapping):
            raise self.wrong(key, "an object")
        return HubConfig(values, f"{self.where}: {key}")

    def wrong(self, key: str, wanted: str) -> ValueError:
        """The error of a value that is not what is wanted."""
        return ValueError(f"{self.where}: {key}={self.values[key]!r}, wanted {wanted}")

    def _required(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(
                f"{self.where} has no key {key!r}; it has {sorted(self.values)}"
            )
        return self.values[key]
