"""Parameters and gradients of published code against ours, by their tables of names."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from ssm.pretrained.names import Table


def take(
    module: nnx.Module, table: Table, theirs: Mapping[str, np.ndarray], prefix: str
) -> tuple[Any, dict[str, Any]]:
    """The graph of an (abstract) module, and values for it from `prefix` + name.

    Every parameter must be in the table, and its shape must fit.
    """
    graphdef, state = nnx.split(module)
    own = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    assert own.keys() == table.keys()
    values = {}
    for path, (name, ours, _) in table.items():
        values[path] = jnp.asarray(ours(theirs[prefix + name]), own[path].dtype)
        assert values[path].shape == own[path].shape, (path, name)
    return graphdef, traverse_util.unflatten_dict(values)


def check_gradients(
    got: dict[str, Any],
    table: Table,
    theirs: Mapping[str, np.ndarray],
    prefix: str,
    tolerance: float,
) -> None:
    """Compares the gradients of all parameters with those under `prefix` + name."""
    got = traverse_util.flatten_dict(got)
    assert got.keys() == table.keys()
    for path, (name, ours, _) in table.items():
        # Of `prefix` + name: files hold gradients under names in which an "out" that
        # ends a folder's name is "out64".
        want = theirs.get(prefix + name)
        if want is None:
            want = theirs[prefix + name.replace("_out/", "_out64/")]
        close(got[path], ours(want), tolerance, np.abs(want).max())


def close(got: Any, want: np.ndarray, tolerance: float, scale: Any = None) -> None:
    """Equal up to `tolerance` of the largest entry."""
    scale = np.abs(want).max() if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)
