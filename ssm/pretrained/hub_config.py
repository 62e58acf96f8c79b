"""The values of a `config.json`, read with their types."""

from collections.abc import Collection, Mapping
from typing import Any

# Names and versions, tokens, how it was or is to be trained, what a call returns.
INDIFFERENT = frozenset(
    """
    _name_or_path auto_map dtype tokenizer_class torch_dtype transformers_version
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    attention_dropout initializer_range max_position_embeddings
    chunk_size_feed_forward is_decoder is_encoder_decoder id2label label2id
    output_attentions output_hidden_states problem_type return_dict use_cache
    """.split()
)
"""Keys that change nothing that any model computes."""


class HubConfig:
    """A `config.json` of which every key that is looked at is checked.

    Args:
      values: what is in the file.
      where: its path, for errors.

    All methods raise ValueError for a key that is missing or has a wrong value.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where
        self._looked_at: set[str] = set()
        self._sections: list[HubConfig] = []

    def get(self, key: str, default: Any = None) -> Any:
        """Any value, or `default` where there is nothing."""
        self._looked_at.add(key)
        return self.values.get(key, default)

    def integer(self, key: str) -> int:
        """A positive integer."""
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a positive integer")
        return value

    def integer_or(self, key: str, default: int) -> int:
        """A positive integer, or `default` where there is null or nothing."""
        return default if self.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A positive number."""
        value = self._required(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive number")
        return float(value)

    def number_or(self, key: str, default: float) -> float:
        """A positive number, or `default` where there is null or nothing."""
        return default if self.get(key) is None else self.number(key)

    def fixed(self, wanted: Mapping[str, Any]) -> None:
        """Keys that may be missing, but may have no other value."""
        for key, value in wanted.items():
            if self.get(key, value) != value:
                raise self.wrong(key, f"{value!r}: nothing else is implemented")

    def section(self, key: str) -> "HubConfig":
        """The values below a key; none where there is null or nothing."""
        values = self.get(key) or {}
        if not isinstance(values, Mapping):
            raise self.wrong(key, "an object")
        self._sections.append(HubConfig(values, f"{self.where}: {key}"))
        return self._sections[-1]

    def refuse_others(self, indifferent: Collection[str] = ()) -> None:
        """Raises for a key that nobody looked at, unless it is null or indifferent."""
        known = {*self._looked_at, *indifferent}
        for key, value in self.values.items():
            if value is not None and key not in known:
                raise ValueError(
                    f"{self.where}: {key}={value!r} is not implemented. If it changes "
                    "nothing that the model computes, remove it from the file"
                )
        for section in self._sections:
            section.refuse_others()

    def wrong(self, key: str, wanted: str) -> ValueError:
        """The error of a value that is not what is wanted."""
        value = self.values.get(key)
        return ValueError(f"{self.where}: {key}={value!r}, wanted {wanted}")

    def _required(self, key: str) -> Any:
        self._looked_at.add(key)
        if key not in self.values:
            raise ValueError(
                f"{self.where} has no key {key!r}; it has {sorted(self.values)}"
            )
        return self.values[key]
