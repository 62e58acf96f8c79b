"""What has to be known of a kind of model to read and write its checkpoints."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from flax import nnx
from jax.typing import DTypeLike

from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.names import Table


class Architecture(abc.ABC):
    """The configuration of a model that others publish; a frozen dataclass.

    Attributes:
      model_type: the kind's name in `config.json`.
      parts: what blocks of this kind consist of.
      copies: tensors that files may also have -> those that they repeat.
      made_anew: how the names of tensors end that files may also have, and that a model
        makes of its configuration.
      indifferent: keys of `config.json` that change nothing that a model computes,
        besides those of `hub_config.INDIFFERENT`.
    """

    model_type: ClassVar[str]
    parts: ClassVar[tuple[type, ...]]
    copies: ClassVar[Mapping[str, str]] = {}
    made_anew: ClassVar[tuple[str, ...]] = ()
    indifferent: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def build(self, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        """The model with new parameters of `dtype`, in which it also computes."""

    @classmethod
    @abc.abstractmethod
    def of(cls, model: Any) -> Self:
        """The configuration of a model of such parts, as far as one can say it."""

    @classmethod
    @abc.abstractmethod
    def from_hub(cls, config: HubConfig) -> Self:
        """Reads a `config.json`; ValueError for what is not implemented.

        A key that this does not look at is refused, if it is not an indifferent one.
        """

    @abc.abstractmethod
    def to_hub(self) -> dict[str, Any]:
        """Writes a `config.json`; ValueError for what the hub's code cannot do."""

    @abc.abstractmethod
    def hub_names(self) -> Table:
        """The names of the parameters on the hub."""
