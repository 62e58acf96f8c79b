"""DeepMind's checkpoints for flax, from orbax to the Hugging Face layout."""

import functools

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, traverse_util

from experiments import flax_checkpoint
from ssm import pretrained
from ssm.models import griffin

D, R, F, HEADS, VOCABULARY = 32, 40, 56, 4, 11
SIZE = griffin.Size(D, 4, HEADS, lru_width=R, d_ff=F)


def random_tree():
    """The nested dicts that DeepMind's code saves, of four layers."""
    shapes = {"embedder/input_embedding": (VOCABULARY, D), "final_norm/scale": (D,)}
    of_gate = {"w": (HEADS, R // HEADS, R // HEADS), "b": (HEADS, R // HEADS)}
    for layer in range(4):
        block = {
            "temporal_pre_norm/scale": (D,),
            "channel_pre_norm/scale": (D,),
            "mlp_block/ffw_up/w": (2, D, F),
            "mlp_block/ffw_up/b": (2, 1, 1, F),
            "mlp_block/ffw_down/kernel": (F, D),
            "mlp_block/ffw_down/bias": (D,),
        }
        if layer == 2:
            for name, width in (("q", D), ("k", D // HEADS), ("v", D // HEADS)):
                block[f"attention_block/proj_{name}/kernel"] = (D, width)
            block["attention_block/proj_final/kernel"] = (D, D)
            block["attention_block/proj_final/bias"] = (D,)
        else:
            for name, (n_in, n_out) in {
                "x": (D, R),
                "y": (D, R),
                "out": (R, D),
            }.items():
                block[f"recurrent_block/linear_{name}/kernel"] = (n_in, n_out)
                block[f"recurrent_block/linear_{name}/bias"] = (n_out,)
            block["recurrent_block/conv_1d/w"] = (4, R)
            block["recurrent_block/conv_1d/b"] = (R,)
            block["recurrent_block/rg_lru/a_param"] = (R,)
            for gate in ("a_gate", "input_gate"):
                for name, shape in of_gate.items():
                    block[f"recurrent_block/rg_lru/{gate}/{name}"] = shape
        shapes |= {f"blocks.{layer}/{name}": shape for name, shape in block.items()}
    draw = np.random.default_rng(0)
    flat = {
        name: draw.normal(size=shape).astype(jnp.bfloat16)
        for name, shape in shapes.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint as DeepMind's, of a size called "tiny"."""
    monkeypatch.setitem(griffin.RECURRENT_GEMMA, "tiny", SIZE)
    of_few_tokens = functools.partial(pretrained.RecurrentGemma, vocab_size=VOCABULARY)
    monkeypatch.setattr(pretrained, "RecurrentGemma", of_few_tokens)
    directory = tmp_path / "flax"
    ocp.PyTreeCheckpointer().save(directory, {"params": random_tree()})
    return directory


def run(checkpoint, out, size="tiny"):
    command = [f"--checkpoint={checkpoint}", f"--size={size}", f"--out={out}"]
    return flax_checkpoint.main(["main", *command])


def test_converts_what_deepmind_saved(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "hub") == 0
    model = pretrained.load(tmp_path / "hub")
    assert model.stack.blocks[2].mixer.window == 2049
    params, tree = nnx.to_pure_dict(nnx.state(model)), random_tree()
    assert len(traverse_util.flatten_dict(params)) == 78
    recurrent, attention = params["stack"]["blocks"][3], params["stack"]["blocks"][2]
    theirs, up = tree["blocks.3"], tree["blocks.2"]["mlp_block"]["ffw_up"]
    rg_lru, conv = (theirs["recurrent_block"][part] for part in ("rg_lru", "conv_1d"))
    for got, want in (
        (params["encoder"]["embedding"], tree["embedder"]["input_embedding"]),
        (recurrent["norm"]["scale"], theirs["temporal_pre_norm"]["scale"]),
        (recurrent["mixer"]["rg_lru"]["a_param"], rg_lru["a_param"].astype("float32")),
        (recurrent["mixer"]["rg_lru"]["a_gate"]["kernel"], rg_lru["a_gate"]["w"]),
        (
            recurrent["mixer"]["conv"]["kernel"],
            theirs["recurrent_block"]["conv_1d"]["w"],
        ),
        (attention["mlp"]["gate"]["kernel"], up["w"][0]),
        (attention["mlp"]["up"]["bias"], up["b"][1, 0, 0]),
    ):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_what_cannot_be_converted_is_said_in_a_line(checkpoint, tmp_path, capsys):
    for arguments, reason in (
        (
            (checkpoint, tmp_path / "out", "3b"),
            "--size=3b is unknown, wanted one of",
        ),
        ((tmp_path / "no", tmp_path / "out"), "no is no orbax checkpoint that can be"),
        ((checkpoint, tmp_path), f"{tmp_path} is not empty: save to a new directory"),
        (
            (checkpoint, tmp_path / "out", "2b"),
            "the tree has no 'blocks.10/channel_pre_norm/scale'",
        ),
    ):
        assert run(*arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and reason in line
    assert not (tmp_path / "out").exists()
