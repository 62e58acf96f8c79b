"""Which parameters want a smaller learning rate, and which no weight decay.

Layers declare the parameters of their recurrence; this module maps them to labels, and
an optimiser maps labels to settings, for instance by `optax.partition`.
"""

from typing import Any

import jax
from flax import nnx

RECURRENCE, NORM_AND_BIAS, REGULAR = "recurrence", "norm_and_bias", "regular"


def labels(model: nnx.Module) -> dict[str, Any]:
    """The group of every parameter of a model.

    Returns a nested dict of the structure of `nnx.to_pure_dict(nnx.state(model,
    nnx.Param))`, with leaves
      "recurrence"     declared by the layer: decays, phases, step sizes, input maps;
      "norm_and_bias"  scales of norms, and every bias;
      "regular"        all others.
    """
    declared = {
        (*path, name)
        for path, module in nnx.iter_modules(model)
        for name in getattr(module, "recurrence_parameters", ())
    }

    def label(path, _):
        names = tuple(key.key for key in path)
        if names in declared:
            return RECURRENCE
        return NORM_AND_BIAS if names[-1] in ("scale", "bias") else REGULAR

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree_util.tree_map_with_path(label, params)
