"""Models from the Hugging Face hub and back, and from DeepMind's flax checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from ssm.pretrained import hub_directory, weights
from ssm.pretrained.architecture import Architecture
from ssm.pretrained.describe import describe
from ssm.pretrained.hgrn import HGRN
from ssm.pretrained.hgrn2 import HGRN2
from ssm.pretrained.hub_config import INDIFFERENT, HubConfig
from ssm.pretrained.minimax import MiniMax
from ssm.pretrained.recurrent_gemma import RecurrentGemma
from ssm.pretrained.safetensors import Tensor

ARCHITECTURES: dict[str, type[Architecture]] = {
    "RecurrentGemmaForCausalLM": RecurrentGemma,
    "HGRNForCausalLM": HGRN,
    "HGRN2ForCausalLM": HGRN2,
    "MiniMaxForCausalLM": MiniMax,
}
"""By their names on the hub."""


def load(directory: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> Any:
    """The model of a directory from the Hugging Face hub, with its weights.

    Tensors are read one by one, each straight to its dtype and to the devices: under a
    mesh (`with jax.set_mesh(mesh):`) by `ssm.param_sharding`, else to the default one.
    Besides the model the host holds copies of one parameter at a time, of the largest
    when it has none of the others; random values are never drawn.

    Args:
      directory: with config.json and safetensors files.
      dtype: of the parameters and of the computation; None keeps each tensor's own, and
        computes in that of the largest. Parameters of recurrences, such as `a_param`,
        are float32 at least.

    Returns an `nnx.Module` such as `LanguageModel`, to use as it is or to train on.

    Raises:
      FileNotFoundError: the directory, its config.json or a file of tensors is missing.
      ValueError: the architecture is unknown, or config.json asks for what is not
        implemented; a file is damaged, or a pickle; a tensor is missing, too many, of
        another shape or of a dtype that no parameter can have.
    """
    directory = Path(directory)
    config = configuration(hub_directory.read_config(directory))
    tensors = {
        name: tensor
        for name, tensor in hub_directory.find_tensors(directory).items()
        if not name.endswith(config.made_anew)
    }
    for copy, original in config.copies.items():
        if copy in tensors and original in tensors:
            _check_copy(tensors, copy, original, directory)
            del tensors[copy]
    views = hub_directory.Views(tensors)
    return weights.assemble(config, config.hub_names(), views, dtype, str(directory))


def save(
    model: nnx.Module,
    directory: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model as the Hugging Face hub has it, for `load` and for transformers.

    The configuration is read off the model, so that any model of the kind can be saved,
    loaded or trained. What was loaded and saved again is the same, bit by bit. The
    directory appears when it is complete.

    Args:
      model: of an architecture that `load` knows, stacked by `scan_layers` or not. Of
        several processes one saves, with parameters that are whole on its devices.
      directory: one that is not there yet, or is empty.
      max_shard_bytes: of tensors in one file; more make several files and an index.

    Raises:
      FileExistsError: there are files in the directory.
      ValueError: the hub has no such model.
    """
    directory = Path(directory)
    hub_directory.check_free(directory)
    model = weights.one_by_one(model)
    config = describe(model, ARCHITECTURES.values())
    described = config.to_hub()
    tensors = weights.disassemble(model, config.hub_names())
    main = max(tensors.values(), key=lambda tensor: tensor.nbytes).dtype
    described["torch_dtype"] = str(main)
    hub_directory.write(directory, described, tensors, max_shard_bytes)


def from_flax(
    tree: Mapping[str, Any], config: RecurrentGemma, *, dtype: DTypeLike | None = None
) -> Any:
    """The model of DeepMind's parameters for flax.

    Args:
      tree: nested dicts of arrays as they are named there, "params" above them or not;
        `python -m experiments.flax_checkpoint` restores them with orbax.
      config: what they are the weights of, which these checkpoints do not say.
      dtype: as in `load`.

    Raises ValueError if the tree does not fit the configuration.
    """
    while set(tree) == {"params"}:
        tree = tree["params"]
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    tensors = {name: np.asarray(array) for name, array in flat.items()}
    return weights.assemble(config, config.flax_names(), tensors, dtype, "the tree")


def configuration(config: HubConfig) -> Architecture:
    """What a `config.json` describes; ValueError for what `load` cannot do."""
    names = config.get("architectures") or []
    kind = config.get("model_type")
    for name, architecture in ARCHITECTURES.items():
        if name in names or (not names and architecture.model_type == kind):
            read = architecture.from_hub(config)
            config.refuse_others(INDIFFERENT | architecture.indifferent)
            return read
    raise ValueError(
        f"{config.where}: unknown architecture {', '.join(names) or kind}; known are "
        f"{', '.join(ARCHITECTURES)}"
    )


def _check_copy(
    tensors: Mapping[str, Tensor], copy: str, original: str, where: Path
) -> None:
    """Refuse weights in which a shared tensor is two different ones."""
    one, other = tensors[copy], tensors[original]
    same = (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        np.array_equal(*rows) for rows in zip(one.open(), other.open(), strict=True)
    )
    if not same:
        raise ValueError(
            f"{where}: {copy!r} differs from {original!r}, but config.json says that "
            "they are one (tie_word_embeddings): untied weights have no model here"
        )
