"""Checkpoints written by hand, with nothing of ours."""

import json
import math

import numpy as np

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def pack(tensors):
    """The bytes of a safetensors file."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        begin = len(data)
        data += np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": CODES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [begin, len(data)],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def unpack(content):
    """Name -> (dtype, shape, bytes) of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            data[slice(*entry["data_offsets"])],
        )
        for name, entry in header.items()
    }


def tensors_in(directory):
    """What `unpack` says of all files of a directory together."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= unpack(path.read_bytes())
    return found


# A RecurrentGemma of four layers and its tensors, as transformers has them.
D, R, F, HEADS, VOCABULARY = 32, 40, 56, 4, 11
CONFIG = {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": False,
    "attention_window_size": 4,
    "block_types": ["recurrent", "recurrent", "attention"],
    "conv1d_width": 4,
    "eos_token_id": 1,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": D,
    "intermediate_size": 2 * F,
    "logits_soft_cap": 30.0,
    "lru_width": R,
    "model_type": "recurrent_gemma",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "vocab_size": VOCABULARY,
}


def shapes(n_kv_heads=2):
    """Name -> shape of every tensor."""
    block = R // HEADS
    recurrent = {
        "linear_x.weight": (R, D),
        "linear_x.bias": (R,),
        "linear_y.weight": (R, D),
        "linear_y.bias": (R,),
        "linear_out.weight": (D, R),
        "linear_out.bias": (D,),
        "conv_1d.weight": (R, 1, 4),
        "conv_1d.bias": (R,),
        "rg_lru.recurrent_param": (R,),
        "rg_lru.recurrent_gate_weight": (HEADS, block, block),
        "rg_lru.recurrent_gate_bias": (HEADS, block),
        "rg_lru.input_gate_weight": (HEADS, block, block),
        "rg_lru.input_gate_bias": (HEADS, block),
    }
    attention = {
        "q_proj.weight": (D, D),
        "k_proj.weight": (n_kv_heads * D // HEADS, D),
        "v_proj.weight": (n_kv_heads * D // HEADS, D),
        "o_proj.weight": (D, D),
        "o_proj.bias": (D,),
    }
    around = {
        "temporal_pre_norm.weight": (D,),
        "channel_pre_norm.weight": (D,),
        "mlp_block.gate_proj.weight": (F, D),
        "mlp_block.gate_proj.bias": (F,),
        "mlp_block.up_proj.weight": (F, D),
        "mlp_block.up_proj.bias": (F,),
        "mlp_block.down_proj.weight": (D, F),
        "mlp_block.down_proj.bias": (D,),
    }
    found = {
        "model.embed_tokens.weight": (VOCABULARY, D),
        "model.final_norm.weight": (D,),
    }
    for layer in range(4):
        mixer = attention if layer % 3 == 2 else recurrent
        mixer = {f"temporal_block.{name}": shape for name, shape in mixer.items()}
        for name, shape in (around | mixer).items():
            found[f"model.layers.{layer}.{name}"] = shape
    return found


def random_tensors(dtype="float32", n_kv_heads=2):
    """A tensor for every name, matrices of a size that keeps activations near one."""
    draw = np.random.default_rng(0)
    return {
        name: (
            draw.normal(size=shape) / math.sqrt(shape[-1] if len(shape) > 1 else 4)
        ).astype(dtype)
        for name, shape in shapes(n_kv_heads).items()
    }


def write(directory, tensors=None, **config):
    """A directory as from the hub; `config` overrides keys, None removes them."""
    values = CONFIG | config
    values = {key: value for key, value in values.items() if value is not None}
    return write_model(
        directory, values, random_tensors() if tensors is None else tensors
    )


def write_model(directory, config, tensors):
    """A directory of these values and tensors."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(pack(tensors))
    return directory
