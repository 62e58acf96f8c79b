"""Which parameter of ours is which of DeepMind's and of transformers' Griffin.

A table maps the path of a parameter in `nnx.to_pure_dict(nnx.state(model))` to the name
of the other's and to a function that takes the other's array (or its gradient) to ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

Path = tuple[Any, ...]
Pick = Callable[[np.ndarray], np.ndarray]
Table = dict[Path, tuple[str, Pick]]


def _same(array):
    return array


def _transposed(array):
    return array.T


def _prefixed(ours: Path, theirs: str, table: Table) -> Table:
    return {
        (*ours, *path): (theirs + name, pick) for path, (name, pick) in table.items()
    }


DEEPMIND_RG_LRU: Table = {
    ("a_param",): ("a_param", _same),
    ("a_gate", "kernel"): ("a_gate/w", _same),
    ("a_gate", "bias"): ("a_gate/b", _same),
    ("input_gate", "kernel"): ("input_gate/w", _same),
    ("input_gate", "bias"): ("input_gate/b", _same),
}
DEEPMIND_COMPLEX_RG_LRU = DEEPMIND_RG_LRU | {("a_imag_param",): ("a_imag_param", _same)}
DEEPMIND_CONV: Table = {("kernel",): ("w", _same), ("bias",): ("b", _same)}
DEEPMIND_RECURRENT: Table = (
    {
        (layer, kind): (f"{layer}/{kind}", _same)
        for layer in ("linear_x", "linear_y", "linear_out")
        for kind in ("kernel", "bias")
    }
    | _prefixed(("conv",), "conv_1d/", DEEPMIND_CONV)
    | _prefixed(("rg_lru",), "rg_lru/", DEEPMIND_RG_LRU)
)
DEEPMIND_ATTENTION: Table = {
    ("query", "kernel"): ("proj_q/kernel", _same),
    ("key", "kernel"): ("proj_k/kernel", _same),
    ("value", "kernel"): ("proj_v/kernel", _same),
    ("out", "kernel"): ("proj_final/kernel", _same),
    ("out", "bias"): ("proj_final/bias", _same),
}
DEEPMIND_MLP: Table = {
    ("gate", "kernel"): ("ffw_up/w", lambda array: array[0]),
    ("gate", "bias"): ("ffw_up/b", lambda array: array[0, 0, 0]),
    ("up", "kernel"): ("ffw_up/w", lambda array: array[1]),
    ("up", "bias"): ("ffw_up/b", lambda array: array[1, 0, 0]),
    ("down", "kernel"): ("ffw_down/kernel", _same),
    ("down", "bias"): ("ffw_down/bias", _same),
}


def deepmind_block(kind: str) -> Table:
    """A residual block, `kind` "recurrent" or "attention"."""
    mixer = {"recurrent": DEEPMIND_RECURRENT, "attention": DEEPMIND_ATTENTION}[kind]
    return (
        {
            ("norm", "scale"): ("temporal_pre_norm/scale", _same),
            ("mlp_norm", "scale"): ("channel_pre_norm/scale", _same),
        }
        | _prefixed(("mixer",), f"{kind}_block/", mixer)
        | _prefixed(("mlp",), "mlp_block/", DEEPMIND_MLP)
    )


def deepmind(kinds: Sequence[str]) -> Table:
    """A whole model; one kind per block."""
    table: Table = {
        ("encoder", "embedding"): ("embedder/input_embedding", _same),
        ("norm", "scale"): ("final_norm/scale", _same),
    }
    for i, kind in enumerate(kinds):
        path = ("stack", "blocks", i)
        table |= _prefixed(path, f"blocks.{i}/", deepmind_block(kind))
    return table


TRANSFORMERS_RG_LRU: Table = {
    ("a_param",): ("recurrent_param", _same),
    ("a_gate", "kernel"): ("recurrent_gate_weight", _same),
    ("a_gate", "bias"): ("recurrent_gate_bias", _same),
    ("input_gate", "kernel"): ("input_gate_weight", _same),
    ("input_gate", "bias"): ("input_gate_bias", _same),
}


def _linear(ours: str, theirs: str, bias: bool = True) -> Table:
    table: Table = {(ours, "kernel"): (f"{theirs}.weight", _transposed)}
    return table | ({(ours, "bias"): (f"{theirs}.bias", _same)} if bias else {})


def transformers_block(kind: str) -> Table:
    """A residual block, `kind` "recurrent" or "attention"."""
    if kind == "recurrent":
        mixer = (
            _linear("linear_x", "linear_x")
            | _linear("linear_y", "linear_y")
            | _linear("linear_out", "linear_out")
            | {
                ("conv", "kernel"): ("conv_1d.weight", lambda array: array[:, 0].T),
                ("conv", "bias"): ("conv_1d.bias", _same),
            }
            | _prefixed(("rg_lru",), "rg_lru.", TRANSFORMERS_RG_LRU)
        )
    else:
        mixer = (
            _linear("query", "q_proj", bias=False)
            | _linear("key", "k_proj", bias=False)
            | _linear("value", "v_proj", bias=False)
            | _linear("out", "o_proj")
        )
    mlp = (
        _linear("gate", "gate_proj")
        | _linear("up", "up_proj")
        | _linear("down", "down_proj")
    )
    return (
        {
            ("norm", "scale"): ("temporal_pre_norm.weight", _same),
            ("mlp_norm", "scale"): ("channel_pre_norm.weight", _same),
        }
        | _prefixed(("mixer",), "temporal_block.", mixer)
        | _prefixed(("mlp",), "mlp_block.", mlp)
    )


def transformers(kinds: Sequence[str]) -> Table:
    """A whole model; one kind per block."""
    table: Table = {
        ("encoder", "embedding"): ("model.embed_tokens.weight", _same),
        ("norm", "scale"): ("model.final_norm.weight", _same),
    }
    for i, kind in enumerate(kinds):
        path = ("stack", "blocks", i)
        table |= _prefixed(path, f"model.layers.{i}.", transformers_block(kind))
    return table


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
    for path, (name, pick) in table.items():
        values[path] = jnp.asarray(pick(theirs[prefix + name]), own[path].dtype)
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
    for path, (name, pick) in table.items():
        # Of `prefix` + name: files hold gradients under names in which an "out" that
        # ends a folder's name is "out64".
        want = theirs.get(prefix + name)
        if want is None:
            want = theirs[prefix + name.replace("_out/", "_out64/")]
        close(got[path], pick(want), tolerance, np.abs(want).max())


def close(got: Any, want: np.ndarray, tolerance: float, scale: Any = None) -> None:
    """Equal up to `tolerance` of the largest entry."""
    scale = np.abs(want).max() if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)
