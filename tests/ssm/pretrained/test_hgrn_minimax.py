"""HGRN, HGRN2 and MiniMax: files of others in, their numbers out, and files back.

The folder `data` has small models as `save_pretrained` wrote them, and their logits as
flash-linear-attention and transformers compute them in float64; its "meta" says how.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssm import pretrained
from ssm.layers.rope import channels_turned
from ssm.models import hgrn, minimax
from ssm.pretrained import checkpoint, weights
from ssm.pretrained.hgrn import HGRN
from ssm.pretrained.hgrn2 import HGRN2
from ssm.pretrained.hub_config import HubConfig
from ssm.pretrained.minimax import MiniMax
from tests import golden
from tests.ssm import published
from tests.ssm.law import QUICK_COMPILE
from tests.ssm.pretrained import files

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
KINDS = ("hgrn", "hgrn2", "minimax")
MADE_ANEW = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


@functools.cache
def theirs(kind):
    with np.load(Path(__file__).parent / "data" / f"{kind}.npz") as file:
        return {key: file[key] for key in file.files}


def config_of(kind, **changes):
    """Their config.json with other values; a key that is to be `...` is left out."""
    values = json.loads(str(theirs(kind)["config"])) | changes
    return {key: value for key, value in values.items() if value is not ...}


def configuration(kind, **changes):
    return checkpoint.configuration(
        HubConfig(config_of(kind, **changes), "config.json")
    )


def tensors_of(kind, dtype="float32"):
    return {
        key.removeprefix("w/"): array.astype(dtype)
        for key, array in theirs(kind).items()
        if key.startswith("w/")
    }


def write(directory, kind, tensors=None, **changes):
    tensors = tensors_of(kind) if tensors is None else tensors
    return files.write_model(directory, config_of(kind, **changes), tensors)


def kept(directory):
    """The tensors of a directory without those that a model makes anew."""
    tensors = files.tensors_in(directory)
    return {k: v for k, v in tensors.items() if not k.endswith(MADE_ANEW)}


def logits_beside_theirs(directory, kind, dtype):
    """Ours and theirs at all tokens that are no padding, (N, vocabulary)."""
    file, seen = theirs(kind), theirs(kind)["seen"]
    reset = np.zeros_like(seen)
    reset[:, 1:] = seen[:, 1:] & ~seen[:, :-1]  # where padding on the left ends
    with jax.enable_x64(dtype == "float64"):
        model = pretrained.load(directory, dtype=dtype)
        run = jit(lambda tokens, reset: model(tokens, reset=reset)[0])
        got = np.asarray(run(jnp.asarray(file["tokens"]), jnp.asarray(reset)))
    return got[seen], file["logits"][seen]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_published_code(tmp_path, kind, dtype):
    got, want = logits_beside_theirs(write(tmp_path / "model", kind), kind, dtype)
    spread = json.loads(str(theirs(kind)["meta"]))["spread"]
    # Ten times how far their own float32 is off; round-off of some thousand operations.
    published.close(got, want, {"float32": 10 * spread, "float64": 1e-13}[dtype])


@pytest.mark.parametrize(("kind", "branches"), [("hgrn", 6), ("hgrn2", 6)])
def test_logits_in_bfloat16(tmp_path, kind, branches):
    got, want = logits_beside_theirs(write(tmp_path / "model", kind), kind, "bfloat16")
    # Some ten roundings of 2^-9 in each residual branch, in random directions, and the
    # parameters' own.
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert error < np.sqrt(20 * branches) * 2**-9


def test_logits_in_bfloat16_of_experts(tmp_path):
    """Rounding chooses another expert where two are as good: at few of the tokens."""
    directory = write(tmp_path / "model", "minimax")
    got, want = logits_beside_theirs(directory, "minimax", "bfloat16")
    error = np.sqrt(np.mean((got - want) ** 2, axis=1) / np.mean(want**2))
    assert np.median(error) < np.sqrt(20 * 8) * 2**-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_the_golden_hgrn(tmp_path, dtype):
    file = golden.load("fla_hgrn_model.npz")
    meta = json.loads(str(file["meta"]))
    (tmp_path / "config.json").write_text(json.dumps(meta["full_config"]))
    source = golden.FOLDER / "fla_hgrn_model.safetensors"
    (tmp_path / "model.safetensors").symlink_to(source)
    with jax.enable_x64(dtype == "float64"):
        model = pretrained.load(tmp_path, dtype=dtype)
        got, _ = jit(model)(jnp.asarray(file["in/input_ids"], jnp.int32))
    tolerance = 1e-12 if dtype == "float64" else meta["suggested_tolerance"]["out"]
    published.close(got, file["out64/logits"], tolerance)
    pretrained.save(pretrained.load(tmp_path), tmp_path / "saved")
    assert kept(tmp_path / "saved") == kept(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "max_shard_bytes"), [("float32", 10**9), ("bfloat16", 20_000)]
)
def test_load_and_save_change_no_bit(tmp_path, kind, dtype, max_shard_bytes):
    directory = write(tmp_path / "model", kind, tensors_of(kind, dtype))
    model = pretrained.load(directory)
    for path, param in weights.flat_params(model).items():
        assert param.dtype == ("float32" if path[-1] == "gamma" else dtype)
    saved = tmp_path / "saved"
    pretrained.save(model, saved, max_shard_bytes=max_shard_bytes)
    assert kept(saved) == kept(directory) == files.tensors_in(saved)
    assert (len(list(saved.glob("*.safetensors"))) > 1) == (dtype == "bfloat16")
    written, read = json.loads((saved / "config.json").read_text()), config_of(kind)
    read["torch_dtype"] = dtype
    if kind == "minimax":
        read |= {"rotary_dim": 6, "rope_theta": 5000.0}
        read["rope_parameters"]["partial_rotary_factor"] = 1.0
    assert {key: read[key] for key in written} == written
    assert nnx.split(pretrained.load(saved))[0] == nnx.split(model)[0]


def test_narrow_and_wide_parts_of_a_tensor(tmp_path):
    """That were narrowed apart from each other go back into one that holds both."""
    model = pretrained.load(write(tmp_path / "model", "minimax"))
    key = model.stack.blocks[0].mixer.key
    key.kernel = nnx.Param(key.kernel[...].astype(jnp.bfloat16))
    pretrained.save(model, tmp_path / "saved")
    again = pretrained.load(tmp_path / "saved").stack.blocks[0].mixer
    np.testing.assert_array_equal(again.key.kernel[...], key.kernel[...])
    np.testing.assert_array_equal(
        again.query.kernel[...], model.stack.blocks[0].mixer.query.kernel[...]
    )


def test_reads_each_kind_of_tensor(tmp_path):
    """Of widths that all differ, by what each tensor holds."""
    tensors = tensors_of("minimax")
    blocks = pretrained.load(write(tmp_path / "model", "minimax")).stack.blocks
    qkv = tensors["model.layers.3.self_attn.qkv_proj.weight"]
    experts = "model.layers.2.block_sparse_moe.experts.4."
    for got, want in (
        (blocks[3].mixer.key.kernel.T[6:12], qkv[18 + 6 : 18 + 12]),  # of head 1
        (
            blocks[2].mixer.key.kernel.T,
            tensors["model.layers.2.self_attn.k_proj.weight"],
        ),
        (blocks[2].mlp.gate[4].T, tensors[experts + "w1.weight"]),
        (blocks[2].mlp.up[4].T, tensors[experts + "w3.weight"]),
        (blocks[2].mlp.down[4].T, tensors[experts + "w2.weight"]),
    ):
        np.testing.assert_array_equal(got, want)


def test_a_mesh_has_its_parts(tmp_path):
    """Of tensors that are several parameters, and of parameters that are several."""
    directory = write(tmp_path / "model", "minimax")
    want = weights.flat_params(pretrained.load(directory))
    axes = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((4,), ("fsdp",), axes)):
        got = weights.flat_params(pretrained.load(directory))
    for path, param in got.items():
        np.testing.assert_array_equal(param, want[path])


TEXT_01 = {
    "head_dim": 128,
    "hidden_size": 6144,
    "intermediate_size": 9216,
    "layer_types": 10 * (7 * ["linear_attention"] + ["full_attention"]),
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "postnorm": True,
    "rope_parameters": ...,
    "rope_theta": 10_000_000,
    "rotary_dim": 64,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "vocab_size": 200_064,
} | dict.fromkeys(
    ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor"),
    3.5565588200778455,
)
HGRN_1B = {
    "hidden_size": 2048,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "norm_eps": ...,
    "num_heads": 1,
    "num_hidden_layers": 24,
    "rms_norm_eps": 1e-6,
    "share_conv_kernel": True,
    "vocab_size": 32_000,
}


@pytest.mark.parametrize(
    ("kind", "changes", "want", "count"),
    [
        ("hgrn", HGRN_1B, HGRN(hgrn.RELEASED["1.3b"], 32_000), 1_364_396_032),
        (
            "hgrn2",
            HGRN_1B | {"expand_ratio": 128, "num_heads": None},
            HGRN2(hgrn.RELEASED["1.3b"]._replace(n_heads=16), 32_000),
            1_364_396_032,  # q in the place of the gate
        ),
        (
            "minimax",
            TEXT_01,
            MiniMax(minimax.RELEASED["text-01"], 200_064, 0.5, 1e7, 3.5565588200778455),
            456_089_655_296,
        ),
    ],
)
def test_the_released_configurations(kind, changes, want, count):
    assert configuration(kind, **changes) == want
    scanned = {
        "hgrn": lambda: hgrn.hgrn_released(
            want.size, scan_layers=True, rngs=nnx.Rngs(0)
        ),
        "hgrn2": lambda: hgrn.hgrn2(want.size, scan_layers=True, rngs=nnx.Rngs(0)),
        "minimax": lambda: minimax.minimax(
            want.size, scan_layers=True, rngs=nnx.Rngs(0)
        ),
    }[kind]
    params = weights.flat_params(nnx.eval_shape(scanned))
    assert sum(param.size for param in params.values()) == count


LIGHTNING, SOFTMAX = "linear_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"num_key_value_heads": None}, {"n_kv_heads": 3}),
        ({"head_dim": None, "hidden_size": 18}, {"head_dim": 6}),
        ({"layer_types": 4 * [SOFTMAX]}, {"every": 1}),
        ({"layer_types": 4 * [LIGHTNING]}, {"every": 5}),
        ({"layer_types": 2 * [LIGHTNING, SOFTMAX]}, {"every": 2}),
    ],
)
def test_other_sizes_of_minimax(changes, want):
    size = configuration("minimax", **changes).size
    assert {key: getattr(size, key) for key in want} == want


@pytest.mark.parametrize(
    ("changes", "theta", "fraction"),
    [
        ({"rope_parameters": {"rope_theta": 3e6, "rope_type": "default"}}, 3e6, 1.0),
        ({"rope_parameters": ..., "rope_theta": 3e6, "rope_scaling": None}, 3e6, 1.0),
        ({"rope_parameters": None}, 1e6, 1.0),
        ({"rope_parameters": {"partial_rotary_factor": 1 / 3}}, 1e6, 1 / 3),
        ({"rotary_dim": 4}, 5e3, 2 / 3),
    ],
)
def test_other_spellings_of_the_angles(changes, theta, fraction):
    read = configuration("minimax", **changes)
    assert (read.rope_theta, read.rope_fraction) == (theta, fraction)


def test_any_number_of_channels_can_be_turned():
    for width in range(2, 257):
        for turned in range(0, width + 1, 2):
            assert channels_turned(turned / width, width) == turned


def test_angles_of_a_part_of_each_head_are_kept(tmp_path):
    """Though transformers has none."""
    directory = write(tmp_path / "model", "minimax", rotary_dim=4)
    pretrained.save(pretrained.load(directory), tmp_path / "saved")
    attention = pretrained.load(tmp_path / "saved").stack.blocks[2].mixer
    assert attention.rope_fraction == 2 / 3


# What training, its code and the caller's wishes are about.
CHANGED = {
    "_name_or_path": "here",
    "attention_dropout": 0.5,
    "auto_map": {"AutoModel": "there"},
    "bos_token_id": 5,
    "dtype": "float16",
    "eos_token_id": [1, 2],
    "initializer_range": 3.0,
    "max_position_embeddings": 4,
    "pad_token_id": 7,
    "torch_dtype": "float16",
    "transformers_version": "0.1",
    "use_cache": False,
}
OF_FLA = {
    "attn_mode": "chunk",
    "conv_size": 9,
    "fuse_cross_entropy": False,
    "fuse_linear_cross_entropy": True,
    "fuse_norm": False,
    "fuse_swiglu": False,
    "share_conv_kernel": True,
    "use_l2warp": True,
}
OF_MINIMAX = {
    "block_size": 7,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
    "router_jitter_noise": 0.5,
}


@pytest.mark.parametrize(
    ("kind", "changes"), [("hgrn", OF_FLA), ("hgrn2", OF_FLA), ("minimax", OF_MINIMAX)]
)
def test_keys_that_change_nothing(tmp_path, kind, changes):
    want = pretrained.load(write(tmp_path / "plain", kind))
    model = pretrained.load(write(tmp_path / "other", kind, **changes, **CHANGED))
    assert nnx.split(model)[0] == nnx.split(want)[0]
    got = weights.flat_params(model)
    for path, param in weights.flat_params(want).items():
        np.testing.assert_array_equal(got[path], param)


OF_BOTH_HGRN = [
    ({"attn": {"layers": [1], "num_heads": 2}}, "attn={'layers'.* is not implemented"),
    ({"attnres_block_size": 2}, "attnres_block_size=2 is not implemented"),
    ({"elementwise_affine": False}, "elementwise_affine=False, wanted True"),
    ({"hidden_act": "powlu"}, "hidden_act='powlu', wanted 'swish'"),
    ({"norm_eps": 1e-5}, "norm_eps=1e-05, wanted 1e-06"),
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05, wanted 1e-06"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings=True, wanted False"),
    ({"use_lower_bound": False}, "use_lower_bound=False, wanted True"),
    ({"use_short_conv": True}, "use_short_conv=True, wanted False"),
    ({"hidden_size": None}, "hidden_size=None, wanted a positive integer"),
    ({"vocab_size": ...}, "has no key 'vocab_size'"),
    (
        {"quantization_config": {"bits": 4}},
        "quantization_config={'bits': 4} is not implemented. If it changes nothing",
    ),
]
OF_MINIMAX_REFUSED = [
    ({"attn_type_list": [0, 1]}, r"attn_type_list=\[0, 1\] is not implemented"),
    ({"full_attn_beta_factor": 2}, "full_attn_beta_factor=2, wanted 1.0"),
    ({"linear_attn_beta_factor": 2}, "linear_attn_beta_factor=2, wanted 1.0"),
    ({"mlp_beta_factor": 2}, "mlp_beta_factor=2, wanted 1.0"),
    ({"mlp_alpha_factor": 3}, "mlp_alpha_factor=3, wanted 1.68.*, the same as full_"),
    ({"mlp_alpha_factor": ...}, "mlp_alpha_factor=None, wanted 1.68"),
    ({"linear_attn_alpha_factor": 0}, "linear_attn_alpha_factor=0, wanted a positive"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu', wanted 'silu'"),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06, wanted 1e-05"),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling={'factor': 2} is not implemented"),
    (
        {"rope_parameters": {"rope_type": "yarn"}},
        "rope_parameters: rope_type='yarn', wanted 'default'",
    ),
    (
        {"rope_parameters": {"factor": 2.0}},
        "rope_parameters: factor=2.0 is not implemented",
    ),
    (
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "rotary_dim": 4},
        "partial_rotary_factor=0.5, wanted 0.666",
    ),
    ({"rotary_dim": 3}, "rotary_dim=3, wanted an even number up to 6"),
    ({"sliding_window": 64}, "sliding_window=64 is not implemented"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings=True, wanted False"),
    ({"shared_intermediate_size": 8}, "shared_intermediate_size=8, wanted 0"),
    ({"postnorm": False}, "postnorm=False, wanted True"),
    ({"num_experts_per_tok": 6}, "top_k=6, wanted 1 to n_experts=5"),
    ({"num_key_value_heads": 2}, "n_kv_heads=2, wanted a divisor of n_heads=3"),
    ({"layer_types": ...}, "layer_types=None, wanted 'linear_attention' or"),
    ({"layer_types": [SOFTMAX]}, r"layer_types=\['full_attention'\], wanted 'linear"),
    (
        {"layer_types": 2 * [SOFTMAX, LIGHTNING]},
        r"layer_types=\['full_attention', 'linear.*, wanted 'full_attention' as the",
    ),
    (
        {"layer_types": 3 * [LIGHTNING] + ["sliding_attention"]},
        "layer_types=.*'sliding_attention'.*, wanted 'full_attention' as the last",
    ),
]
OF_HGRN2_REFUSED = [
    ({"expand_ratio": 7}, "expand_ratio=7, wanted a divisor of 24"),
    ({"num_heads": 4}, "num_heads=4, wanted 3, by expand_ratio"),
    ({"expand_ratio": None, "num_heads": 5}, "num_heads=5, wanted a divisor of 24"),
]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        *(("hgrn", *refused) for refused in OF_BOTH_HGRN),
        ("hgrn", {"expand_ratio": 2}, "expand_ratio=2, wanted 1"),
        *(("hgrn2", *refused) for refused in OF_BOTH_HGRN + OF_HGRN2_REFUSED),
        *(("minimax", *refused) for refused in OF_MINIMAX_REFUSED),
    ],
)
def test_configurations_that_are_refused(tmp_path, kind, changes, message):
    directory = write(tmp_path / "model", kind, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        pretrained.load(directory)
    assert str(directory) in str(raised.value)


def test_heads_of_hgrn2_by_their_number(tmp_path):
    directory = write(tmp_path / "model", "hgrn2", expand_ratio=None)
    assert pretrained.load(directory).stack.blocks[1].mixer.n_heads == 3


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
QKV = "model.layers.1.self_attn.qkv_proj.weight"


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("hgrn", {"model.lower_bounds": None}, "has no 'model.lower_bounds'. It has"),
        (
            "hgrn2",
            {"model.layers.2.attn.q_conv1d.weight": ones(24, 1, 4)},
            "has 'model.layers.2.attn.q_conv1d.weight', which the model has no place",
        ),
        (
            "hgrn2",
            {"model.layers.2.mlp.up_proj.weight": ones(24, 29)},
            r"up_proj.weight' has shape \(24, 29\), wanted \(29, 24\)",
        ),
        ("minimax", {EXPERT: None}, f"has no '{EXPERT}'. It has 90 tensors where the"),
        (
            "minimax",
            {EXPERT: ones(7, 20)},
            r"w2.weight' has shape \(7, 20\), wanted \(20",
        ),
        ("minimax", {QKV: ones(53, 20)}, r"shape \(53, 20\), wanted \(54, 20\)"),
        ("minimax", {QKV: ones(54, 19)}, r"shape \(54, 19\), wanted \(54, 20\)"),
        ("minimax", {QKV: ones(54)}, r"shape \(54,\), wanted \(54, 20\)"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, kind, changes, message):
    tensors = tensors_of(kind) | changes
    tensors = {name: array for name, array in tensors.items() if array is not None}
    directory = write(tmp_path / "model", kind, tensors)
    with pytest.raises(ValueError, match=message) as raised:
        pretrained.load(directory)
    assert str(raised.value).startswith(str(directory))


def test_stacked_layers_are_saved_one_by_one(tmp_path):
    """With what only training has a use for."""
    model = minimax.minimax(
        minimax.TINY,
        vocab_size=11,
        balance_weight=0.1,
        scan_layers=True,
        rngs=nnx.Rngs(0),
    )
    pretrained.save(model, tmp_path / "minimax")
    blocks = pretrained.load(tmp_path / "minimax").stack.blocks
    for got, want in (
        (blocks[1].mlp.gate, model.stack.blocks[1].mlp.gate[0]),
        (blocks[2].mixer.key.kernel, model.stack.blocks[2].mixer.key.kernel[0]),
        (blocks[3].mixer.key.kernel, model.stack.rest[0].mixer.key.kernel),
    ):
        np.testing.assert_array_equal(got[...], want)

    model = hgrn.hgrn2(hgrn.TINY, vocab_size=11, scan_layers=True, rngs=nnx.Rngs(0))
    pretrained.save(model, tmp_path / "hgrn2")
    got = pretrained.load(tmp_path / "hgrn2").stack.blocks[2].mixer.f_proj.kernel
    np.testing.assert_array_equal(got[...], model.stack.blocks.mixer.f_proj.kernel[2])


def of_paper():
    return hgrn.hgrn(hgrn.TINY, vocab_size=11, rngs=nnx.Rngs(0))


def with_other_norm():
    model = hgrn.hgrn_released(hgrn.TINY, vocab_size=11, rngs=nnx.Rngs(0))
    model.norm.epsilon = 1e-5
    return model


def with_other_residual():
    model = minimax.minimax(minimax.TINY, vocab_size=11, rngs=nnx.Rngs(0))
    model.stack.blocks[1].alpha = 9.0
    return model


def without_angles():
    size, rngs = minimax.TINY, nnx.Rngs(0)
    return minimax.minimax(size, vocab_size=11, rope_fraction=0.0, rngs=rngs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_angles, "no model with rope_fraction=0.0, none of 8 channels"),
        (of_paper, "GatedMLP, HGRU, LayerNorm.* is none of the models that can be"),
        (with_other_norm, "norm/epsilon of this model is 1e-05, wanted 1e-06: a HGRN"),
        (with_other_residual, "blocks/1/alpha of this model is 9.0, wanted 1.68"),
    ],
)
def test_models_that_cannot_be_saved(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        pretrained.save(nnx.eval_shape(make), tmp_path / "saved")
    assert not list(tmp_path.iterdir())
