"""Checkpoints of others: their numbers, their layout back bit by bit, and bad ones."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import ssm
from ssm import param_sharding, pretrained
from ssm.blocks import ResidualBlock, S4Block
from ssm.models import griffin
from ssm.pretrained import checkpoint, safetensors, weights
from ssm.pretrained.hub_config import HubConfig
from tests import golden
from tests.ssm import published
from tests.ssm.law import QUICK_COMPILE
from tests.ssm.pretrained import files

jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


def params_of(model):
    return weights.flat_params(model)


def logits(model, tokens):
    graphdef, state = nnx.split(model)
    return jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens)[0])(
        state, tokens
    )


def golden_directory(directory):
    """transformers' own files of a small model, and its inputs and outputs."""
    file = golden.load("hf_recurrentgemma_a.npz")
    config = json.loads(str(file["meta"]))["full_config"]
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    source = golden.FOLDER / "hf_recurrentgemma_a.safetensors"
    (directory / "model.safetensors").symlink_to(source)
    return directory, file, jnp.asarray(file["in/input_ids"], jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_transformers(tmp_path, dtype):
    with jax.enable_x64(dtype == "float64"):
        directory, file, tokens = golden_directory(tmp_path / "model")
        model = pretrained.load(directory, dtype=dtype)
        assert {str(param.dtype) for param in params_of(model).values()} == {dtype}
        got = logits(model, tokens)
    tolerance = json.loads(str(file["meta"]))["suggested_tolerance"]["out"]
    tolerance = 1e-12 if dtype == "float64" else tolerance
    published.close(got, file["out64/logits"], tolerance)


def test_logits_of_transformers_in_bfloat16(tmp_path):
    directory, file, tokens = golden_directory(tmp_path / "model")
    got = logits(pretrained.load(directory, dtype=jnp.bfloat16), tokens)
    # Some ten roundings of 2^-9 in each of ten residual branches, in random directions,
    # and the parameters' own: sqrt(200) * 2^-9 of the root mean square.
    want = file["out64/logits"]
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert error < np.sqrt(200) * 2**-9


def test_saves_what_transformers_wrote(tmp_path):
    directory, _, _ = golden_directory(tmp_path / "model")
    pretrained.save(pretrained.load(directory), tmp_path / "saved")
    want = files.tensors_in(directory)
    assert want.pop("lm_head.weight") == want["model.embed_tokens.weight"]
    assert files.tensors_in(tmp_path / "saved") == want


def test_logits_of_deepmind():
    file = golden.load("dm_griffin_a.npz")
    tree = {
        tuple(key.removeprefix("w/").split("/")): file[key]
        for key in file
        if key.startswith("w/params/")
    }
    tree = traverse_util.unflatten_dict(tree)
    # Its window of 8 lets a query see 9 keys.
    config = pretrained.RecurrentGemma(
        griffin.Size(64, 5, 4, d_ff=96), vocab_size=97, window=9
    )
    with jax.enable_x64(True):
        model = pretrained.from_flax(tree["params"], config, dtype=jnp.float64)
        got = logits(model, jnp.asarray(file["in/tokens"], jnp.int32))
    published.close(got, file["out64/logits"], 1e-12)
    # The same with the collection's name above.
    got = params_of(pretrained.from_flax(tree, config))
    want = params_of(model)
    assert got.keys() == want.keys()
    for path, param in got.items():
        assert param.dtype == jnp.float32
        np.testing.assert_array_equal(param, want[path])


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_reads_each_kind_of_tensor(tmp_path, n_kv_heads):
    """Of a model whose widths all differ, by what each tensor holds."""
    tensors = files.random_tensors(n_kv_heads=n_kv_heads)
    directory = files.write(tmp_path / "model", tensors, num_key_value_heads=n_kv_heads)
    model = pretrained.load(directory)
    params = nnx.to_pure_dict(nnx.state(model))
    own = params["stack"]["blocks"]
    layer = "model.layers.{}.temporal_block."
    for got, want in (
        (params["encoder"]["embedding"], "model.embed_tokens.weight"),
        (own[2]["mixer"]["key"]["kernel"].T, layer.format(2) + "k_proj.weight"),
        (own[2]["mlp"]["up"]["kernel"].T, "model.layers.2.mlp_block.up_proj.weight"),
        (
            own[3]["mixer"]["rg_lru"]["a_gate"]["kernel"],
            layer.format(3) + "rg_lru.recurrent_gate_weight",
        ),
        (
            own[0]["mixer"]["conv"]["kernel"].T[:, None],
            layer.format(0) + "conv_1d.weight",
        ),
    ):
        np.testing.assert_array_equal(got, tensors[want])
    size = griffin.Size(
        files.D, 4, files.HEADS, lru_width=files.R, d_ff=files.F, n_kv_heads=n_kv_heads
    )
    want = nnx.eval_shape(
        lambda: griffin.recurrent_gemma(
            size,
            vocab_size=files.VOCABULARY,
            window=4,
            dtype=np.dtype("float32"),
            param_dtype=np.dtype("float32"),
            rngs=nnx.Rngs(0),
        )
    )
    assert nnx.split(model)[0] == nnx.split(want)[0]


@pytest.mark.parametrize(
    ("dtype", "max_shard_bytes"),
    [
        ("float32", 10**9),
        ("bfloat16", 10**9),
        ("bfloat16", 20_000),
        ("float16", 20_000),
    ],
)
def test_load_and_save_change_no_bit(tmp_path, dtype, max_shard_bytes):
    directory = files.write(tmp_path / "model", files.random_tensors(dtype))
    model = pretrained.load(directory)
    for path, param in params_of(model).items():
        assert param.dtype == ("float32" if path[-1] == "a_param" else dtype)
    saved = tmp_path / "deep" / "saved"
    pretrained.save(model, saved, max_shard_bytes=max_shard_bytes)
    assert files.tensors_in(saved) == files.tensors_in(directory)

    written = json.loads((saved / "config.json").read_text())
    kept = files.CONFIG.keys() - {"eos_token_id"}
    assert {key: written[key] for key in kept} == {
        key: files.CONFIG[key] for key in kept
    }
    assert written["torch_dtype"] == dtype

    shards = sorted(saved.glob("*.safetensors"))
    if max_shard_bytes == 20_000:
        index = json.loads((saved / "model.safetensors.index.json").read_text())
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}" for i in range(len(shards))]
        assert len(shards) > 1 and [shard.stem for shard in shards] == names
        for name, file in index["weight_map"].items():
            assert name in files.unpack((saved / file).read_bytes())
        sizes = [
            sum(len(data) for *_, data in files.unpack(shard.read_bytes()).values())
            for shard in shards
        ]
        assert sum(sizes) == index["metadata"]["total_size"]
        assert max(sizes) <= max_shard_bytes
    else:
        assert [shard.name for shard in shards] == ["model.safetensors"]

    again = params_of(pretrained.load(saved))
    for path, param in params_of(model).items():
        np.testing.assert_array_equal(again[path], param)


def test_narrow_parameters_are_rounded_once(tmp_path):
    directory = files.write(tmp_path / "model")
    wide = params_of(pretrained.load(directory))
    narrow = params_of(pretrained.load(directory, dtype=jnp.bfloat16))
    for path, param in narrow.items():
        if path[-1] == "a_param":
            np.testing.assert_array_equal(param, wide[path])
        else:
            assert param.dtype == jnp.bfloat16
            np.testing.assert_array_equal(param, wide[path].astype(jnp.bfloat16))


def test_carries_keep_their_dtypes_in_bfloat16(tmp_path):
    """So that a loop of steps can hold them."""
    directory = files.write(tmp_path / "model", files.random_tensors("bfloat16"))
    model = pretrained.load(directory)
    carry = jax.eval_shape(lambda: model.init_carry(2))
    token = jax.ShapeDtypeStruct((2,), jnp.int32)
    logits, after = jax.eval_shape(lambda *inputs: model.step(*inputs), token, carry)
    assert logits.dtype == jnp.float32 and after == carry
    assert carry[0]["conv"].dtype == carry[2]["keys"].dtype == jnp.bfloat16
    assert carry[0]["rg_lru"]["state"].dtype == jnp.float32


def test_a_recurrence_that_was_trained_is_not_rounded(tmp_path):
    directory = files.write(tmp_path / "model", files.random_tensors("bfloat16"))
    model = pretrained.load(directory)
    rg_lru = model.stack.blocks[1].mixer.rg_lru
    rg_lru.a_param[...] = rg_lru.a_param[...] + 1e-4
    pretrained.save(model, tmp_path / "saved")
    again = pretrained.load(tmp_path / "saved")
    np.testing.assert_array_equal(
        again.stack.blocks[1].mixer.rg_lru.a_param[...], rg_lru.a_param[...]
    )
    saved = files.tensors_in(tmp_path / "saved")
    name = "model.layers.{}.temporal_block.rg_lru.recurrent_param"
    assert saved[name.format(1)][0] == "F32" and saved[name.format(0)][0] == "BF16"


def test_tensors_keep_their_own_dtypes(tmp_path):
    tensors = files.random_tensors("bfloat16")
    norms = [name for name in tensors if name.endswith("norm.weight")]
    tensors |= {name: tensors[name].astype(np.float32) for name in norms}
    directory = files.write(tmp_path / "model", tensors)
    model = pretrained.load(directory)
    assert model.norm.scale.dtype == jnp.float32
    assert model.encoder.embedding.dtype == jnp.bfloat16
    pretrained.save(model, tmp_path / "saved")
    assert files.tensors_in(tmp_path / "saved") == files.tensors_in(directory)


@pytest.mark.parametrize("n_layers", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_stacked_layers_are_saved_one_by_one(tmp_path, n_layers):
    for name in ("listed", "stacked"):
        size = griffin.TINY._replace(n_layers=n_layers)
        options = {"vocab_size": 11, "scan_layers": name == "stacked"}
        model = griffin.recurrent_gemma(size, rngs=nnx.Rngs(0), **options)
        pretrained.save(model, tmp_path / name)
    assert model.stack.scan_layers  # it was not changed
    got, want = (files.tensors_in(tmp_path / name) for name in ("stacked", "listed"))
    assert got.keys() == want.keys()
    for name, (dtype, shape, data) in got.items():
        assert (dtype, shape) == want[name][:2] == ("F32", shape)
        mine, true = (np.frombuffer(b, np.float32) for b in (data, want[name][2]))
        # The layers of a stack are drawn at once, which may round otherwise.
        np.testing.assert_allclose(mine, true, rtol=1e-6, atol=1e-7)


def test_a_mesh_has_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(param_sharding, "MIN_SIZE", 512)
    directory = files.write(tmp_path / "model")
    want = params_of(pretrained.load(directory))
    axes = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "fsdp"), axes)) as _:
        mesh = jax.sharding.get_mesh()
        model = pretrained.load(directory)
        split = 0
        for path, param in params_of(model).items():
            assert param.sharding == param_sharding.by_size(mesh, param)
            np.testing.assert_array_equal(param, want[path])
            shard = param.addressable_shards[0].data
            split += shard.size == param.size // 4
        assert split > 10
        pretrained.save(model, tmp_path / "saved")
    assert files.tensors_in(tmp_path / "saved") == files.tensors_in(directory)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axes[:1])):
        for param in params_of(pretrained.load(directory)).values():
            assert param.sharding.is_fully_replicated


RELEASED = files.CONFIG | {
    "attention_window_size": 2048,
    "embeddings_scale_by_sqrt_dim": True,
    "head_dim": 256,
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "lru_width": 2560,
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}


def test_the_released_configuration():
    config = checkpoint.configuration(HubConfig(RELEASED, "config.json"))
    size = griffin.RECURRENT_GEMMA["2b"]._replace(lru_width=2560, d_ff=7680)
    assert config == pretrained.RecurrentGemma(size, window=2048)
    model = weights.abstract(config, jnp.bfloat16)
    assert sum(param.size for param in params_of(model).values()) == 2_682_862_080
    assert {name.name for name in config.hub_names().values()} >= {
        "model.layers.25.temporal_block.rg_lru.recurrent_param",
        "model.layers.23.temporal_block.k_proj.weight",
    }


def test_other_spellings_of_the_configuration(tmp_path):
    """The older key of the pattern, the nested angles, and what may be null."""
    old = files.write(
        tmp_path / "old",
        architectures=None,
        block_types=None,
        _block_types=["recurrent", "recurrent", "attention", "recurrent"],
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    want = params_of(pretrained.load(files.write(tmp_path / "new")))
    for path, param in params_of(pretrained.load(old)).items():
        np.testing.assert_array_equal(param, want[path])
    for key, value in (("lru_width", 32), ("num_key_value_heads", 4)):
        config = HubConfig(files.CONFIG | {key: None}, "config.json")
        assert (
            getattr(
                pretrained.RecurrentGemma.from_hub(config).size,
                "n_kv_heads" if key == "num_key_value_heads" else key,
            )
            == value
        )


def test_a_copy_of_the_embedding_is_left_out(tmp_path):
    tensors = files.random_tensors()
    embedding = tensors["model.embed_tokens.weight"]
    directory = files.write(tmp_path / "model", tensors | {"lm_head.weight": embedding})
    model = pretrained.load(directory)
    np.testing.assert_array_equal(model.encoder.embedding[...], embedding)
    other = embedding.copy()
    other[-1, -1] += 1
    files.write(directory, tensors | {"lm_head.weight": other})
    with pytest.raises(ValueError, match="'lm_head.weight' differs from 'model.embed_"):
        pretrained.load(directory)


def without(name):
    return {key: value for key, value in files.random_tensors().items() if key != name}


BIAS = "model.layers.1.mlp_block.up_proj.bias"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            without(BIAS),
            f"has no '{BIAS}'. It has 77 tensors where the model has 78; nearest",
        ),
        (
            {f"model.{name}": x for name, x in files.random_tensors().items()},
            "has no 'model.embed_tokens.weight', .* and 75 more.* 'model.model.embed_",
        ),
        (
            files.random_tensors() | {"model.layers.1.extra": np.ones(3, np.float32)},
            "has 'model.layers.1.extra', which the model has no place for",
        ),
        (
            files.random_tensors() | {BIAS: np.ones(57, np.float32)},
            rf"tensor '{BIAS}' has shape \(57,\), wanted \(56,\)",
        ),
        (
            files.random_tensors()
            | {"model.layers.0.mlp_block.up_proj.weight": np.ones((32, 56), "f4")},
            r"up_proj.weight' has shape \(32, 56\), wanted \(56, 32\)",
        ),
        (
            files.random_tensors()
            | {"model.layers.0.temporal_block.conv_1d.weight": np.ones(4, "f4")},
            r"conv_1d.weight' has shape \(4,\), wanted \(40, 1, 4\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, message):
    directory = files.write(tmp_path / "model", tensors)
    with pytest.raises(ValueError, match=message) as raised:
        pretrained.load(directory)
    assert str(raised.value).startswith(str(directory))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "unknown architecture MambaForCausalLM; known are RecurrentGemmaForCau",
        ),
        (
            {"architectures": None, "model_type": "mamba"},
            "unknown architecture mamba; known are RecurrentGemmaForCausalLM",
        ),
        ({"hidden_size": None}, r"has no key 'hidden_size'; it has \['architectures'"),
        ({"hidden_size": "32"}, "hidden_size='32', wanted a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0, wanted a positive integer"),
        ({"vocab_size": True}, "vocab_size=True, wanted a positive integer"),
        ({"logits_soft_cap": 0.0}, "logits_soft_cap=0.0, wanted a positive number"),
        ({"intermediate_size": 111}, "intermediate_size=111, wanted an even number"),
        ({"num_attention_heads": 5}, "num_attention_heads=5, wanted a divisor of 32"),
        ({"num_key_value_heads": 3}, "n_kv_heads=3, wanted a divisor of n_heads=4"),
        ({"lru_width": 41}, "n_blocks=4, wanted a divisor of the widths 41 and 41"),
        ({"head_dim": 16}, "head_dim=16, wanted 8: nothing else is implemented"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu', wanted 'gelu_pyt"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05, wanted 1e-06"),
        ({"attention_bias": True}, "attention_bias=True, wanted False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False, wanted True"),
        ({"rope_theta": 5e5}, "rope_theta=500000.0, wanted 10000.0"),
        (
            {"rope_parameters": {"rope_theta": 5e5}},
            "config.json: rope_parameters: rope_theta=500000.0, wanted 10000.0",
        ),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling={'factor': 2} is not impl"),
        ({"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim=F"),
        ({"rope_parameters": 3}, "rope_parameters=3, wanted an object"),
        ({"block_types": ["recurrent"]}, r"block_types=\['recurrent'\], wanted \["),
        ({"block_types": []}, r"block_types=\[\], wanted \["),
        ({"block_types": 3}, r"block_types=3, wanted \["),
    ],
)
def test_configurations_that_are_refused(tmp_path, config, message):
    directory = files.write(tmp_path / "model", **config)
    with pytest.raises(ValueError, match=message) as raised:
        pretrained.load(directory)
    assert str(directory) in str(raised.value)


def test_directories_that_lack_something(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory .*/nowhere"):
        pretrained.load(tmp_path / "nowhere")
    directory = files.write(tmp_path / "model")
    config, tensors = directory / "config.json", directory / "model.safetensors"

    content = config.read_text()
    config.write_text(content[:-1])
    with pytest.raises(ValueError, match="config.json is not JSON"):
        pretrained.load(directory)
    config.write_text("[]")
    with pytest.raises(ValueError, match="config.json is no JSON object"):
        pretrained.load(directory)
    config.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no config.json; it has \['model.safetensors'\]"
    ):
        pretrained.load(directory)
    config.write_text(content)

    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no intact safetensors file"):
        pretrained.load(directory)
    tensors.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"neither model.safetensors nor .*\['config.json'\]"
    ):
        pretrained.load(directory)
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"in pickles only \(pytorch_model.bin\).*Convert"
    ):
        pretrained.load(directory)


def test_an_index_that_does_not_fit(tmp_path):
    directory = tmp_path / "model"
    pretrained.save(
        pretrained.load(files.write(tmp_path / "one")),
        directory,
        max_shard_bytes=50_000,
    )
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))

    moved = index["weight_map"] | {BIAS: first}
    assert moved != index["weight_map"]
    path.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(
        ValueError, match=f"says that '{BIAS}' is in {first}, which has"
    ):
        pretrained.load(directory)
    for content in ("{}", '{"weight_map": 3}', '{"weight_map": {"x": 3}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="has no 'weight_map' of files"):
            pretrained.load(directory)
    path.write_text(json.dumps(index))
    (directory / last).unlink()
    with pytest.raises(FileNotFoundError, match=f"names {last}, which is not there"):
        pretrained.load(directory)


def test_dtypes_that_are_refused(tmp_path):
    directory = files.write(tmp_path / "model", files.random_tensors("float64"))
    with pytest.raises(ValueError, match="loaded as float64, which .*jax_enable_x64"):
        pretrained.load(directory)
    assert pretrained.load(directory, dtype="float32").norm.scale.dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype=int32, wanted a floating dtype"):
        pretrained.load(directory, dtype=jnp.int32)


def tiny(make=griffin.recurrent_gemma, **options):
    return make(griffin.TINY, vocab_size=11, rngs=nnx.Rngs(0), **options)


def with_other_angles():
    model = tiny()
    model.stack.blocks[2].mixer.rope_theta = 5e5
    return model


def of_attention():
    def make_block(rngs):
        mixer = ssm.LocalAttention(8, 2, window=3, rngs=rngs)
        return ResidualBlock(mixer, ssm.GatedMLP(8, 8, rngs=rngs), 8, rngs=rngs)

    return ssm.LanguageModel(
        make_block, n_layers=1, d_model=8, vocab_size=11, rngs=nnx.Rngs(0)
    )


def of_lru():
    return ssm.LanguageModel(
        lambda rngs: S4Block(ssm.LRU(8, 8, rngs=rngs), 8, rngs=rngs),
        n_layers=1,
        d_model=8,
        vocab_size=11,
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(griffin.griffin), "no model with scale_embedding=False"),
        (lambda: tiny(griffin.griffin, scale_embedding=True), "soft_cap=None"),
        (
            lambda: griffin.recurrent_gemma(
                griffin.TINY._replace(n_blocks=2), vocab_size=11, rngs=nnx.Rngs(0)
            ),
            "n_blocks=2, n_heads=4",
        ),
        (
            lambda: tiny(griffin.hawk),
            "stack/blocks/2/mixer of this model is GriffinRecurrence, wanted LocalAtt",
        ),
        (
            with_other_angles,
            "stack/blocks/2/mixer/rope_theta of this model is 500000.0, wanted 10000.0",
        ),
        (of_attention, "a model without recurrences is no RecurrentGemma"),
        (of_lru, "a LanguageModel of .* LRU, .* S4Block is none of the models"),
        (lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "a Linear of no known blocks"),
    ],
)
def test_models_that_cannot_be_saved(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        pretrained.save(nnx.eval_shape(make), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_when_it_is_complete(tmp_path, monkeypatch):
    model = tiny()
    write = safetensors.write

    def fail_at_the_second(file, tensors):
        if "00002" in file.name:
            raise OSError("disk full")
        write(file, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(safetensors, "write", fail_at_the_second)
        with pytest.raises(OSError, match="disk full"):
            pretrained.save(model, tmp_path / "saved", max_shard_bytes=20_000)
    assert not list(tmp_path.iterdir())
    # A process that was killed leaves its directory behind.
    (tmp_path / ".saved.unfinished").mkdir()
    (tmp_path / ".saved.unfinished" / "model-00001-of-00009.safetensors").touch()
    pretrained.save(model, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    with pytest.raises(FileExistsError, match="saved is not empty"):
        pretrained.save(model, tmp_path / "saved")


def test_a_tree_that_does_not_fit():
    config = pretrained.RecurrentGemma(griffin.TINY, vocab_size=11)
    with pytest.raises(ValueError, match="the tree has no 'blocks.0/channel_pre_norm/"):
        pretrained.from_flax({"params": {"embedder": {"b": np.ones(3)}}}, config)


MEASURE = """
import sys
import jax
from flax import nnx
from ssm import pretrained

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(key))
    return 1024 * int(kilobytes)

jax.numpy.zeros(1).block_until_ready()
before = status("VmRSS")
directory, dtype = sys.argv[1:]
model = pretrained.load(directory, dtype=None if dtype == "None" else dtype)
size = sum(param.nbytes for param in jax.tree.leaves(nnx.state(model)))
print(size, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_host_holds_little_besides_the_model(tmp_path, subprocess_env, dtype):
    """333 MB, or twice that after widening; at its peak 1.2 times the model."""
    config = pretrained.RecurrentGemma(griffin.Size(1024, 12, 8), vocab_size=16_000)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hub()))
    draw = np.random.default_rng(0)
    abstract = weights.abstract(config, jnp.bfloat16)
    planned = {
        name: tensor._replace(
            dtype=np.dtype(jnp.bfloat16),
            value=lambda shape=tensor.shape: draw.normal(size=shape).astype("bfloat16"),
        )
        for name, tensor in _planned(abstract, config).items()
    }
    safetensors.write(tmp_path / "model.safetensors", planned)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(dtype)]
    done = subprocess.run(
        command, env=subprocess_env, capture_output=True, text=True, check=True
    )
    size, peak = map(int, done.stdout.split())
    assert size > 3e8
    assert peak < 1.2 * size


def _planned(abstract, config):
    """Names and shapes of all tensors of a model."""
    planned = {}
    for path, param in params_of(abstract).items():
        name = config.hub_names()[path]
        shape = jax.eval_shape(name.theirs, param).shape
        planned[name.name] = safetensors.Planned(param.dtype, shape, lambda: None)
    return planned
