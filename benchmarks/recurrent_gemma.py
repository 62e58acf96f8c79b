"""A RecurrentGemma beside DeepMind's own implementation, with the same weights.

The peer is a checkout of github.com/google-deepmind/recurrentgemma, given by
`--recurrent-gemma`; it needs einops, sentencepiece and typeguard 2 as well.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.decoding import decoder
from benchmarks.griffin import tokens_of, without_scan
from benchmarks.harness import at_least, check_close, interleaved, table
from benchmarks.train_step import Contender, compile_step, stepper
from ssm import LanguageModel, pretrained
from ssm.models import griffin

SIZE = griffin.Size(256, 6, 4, d_ff=768)
VOCABULARY, WINDOW = 1024, 256
BATCH, LENGTH = 4, 1024  # of a training step
PROMPT, STEPS = 512, 128  # of decoding
# Sums over BATCH * LENGTH rows in another order: 4096 * 6e-8 at the very worst.
TOLERANCE = 3e-4


class Peer:
    """DeepMind's model: parameters, logits, gradients and decoding.

    As fast as it can be made without changing it: activations are kept rather than
    computed again, and the scan is the one that it chooses for a CPU.
    """

    def __init__(self, checkout: Path):
        sys.path.insert(0, str(checkout))
        from recurrentgemma import jax as peer

        kinds = peer.TemporalBlockType
        pattern = kinds.RECURRENT, kinds.RECURRENT, kinds.ATTENTION
        config = peer.GriffinConfig(
            vocab_size=VOCABULARY,
            width=SIZE.d_model,
            mlp_expanded_width=SIZE.d_ff,
            num_heads=SIZE.n_heads,
            block_types=tuple(pattern[i % 3] for i in range(SIZE.n_layers)),
            embeddings_scale_by_sqrt_dim=True,
            attention_window_size=WINDOW - 1,  # not counting the query's own step
            logits_soft_cap=30.0,
        )
        self.model = peer.Griffin(config, gradient_checkpointing=False)
        tokens = tokens_of(1, 8)
        init = jax.jit(self.model.init)
        self.params = init(jax.random.key(0), tokens, jnp.zeros_like(tokens))["params"]

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return the logits of whole sequences."""
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.model.apply(
            {"params": params}, tokens, position, return_cache=False
        )[0]

    def decoder(self, prompt: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """Return a function that feeds tokens (N, B) after a prompt: logits."""

        @jax.jit
        def read(params: Any) -> Any:
            position = jnp.broadcast_to(jnp.arange(PROMPT), prompt.shape)
            return self.model.apply({"params": params}, prompt, position)[1]

        @jax.jit
        def decode(params: Any, cache: Any, tokens: jax.Array) -> jax.Array:
            def step(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
                cache, position = carry
                logits, cache = self.model.apply(
                    {"params": params}, token[:, None], position[:, None], cache
                )
                return (cache, position + 1), logits[:, 0]

            position = jnp.full(tokens.shape[1], PROMPT)
            return jax.lax.scan(step, (cache, position), tokens)[1]

        return functools.partial(decode, self.params, read(self.params))


def model_of(peer: Peer | None) -> LanguageModel:
    """Return our model, with the peer's weights if there is one."""
    config = pretrained.RecurrentGemma(SIZE, vocab_size=VOCABULARY, window=WINDOW)
    if peer is None:
        return config.build(jnp.float32, nnx.Rngs(0))
    return pretrained.from_flax(peer.params, config)


def our_decoder(
    model: LanguageModel, prompt: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Return a function that feeds tokens (N, B) after a prompt: logits."""
    graphdef, state = nnx.split(model)
    read = jax.jit(lambda state: nnx.merge(graphdef, state)(prompt)[1])
    decode, carry = decoder(model), read(state)
    return lambda tokens: decode(carry, tokens)[1]


def run(checkout: Path | None) -> str:
    """Return the table; without a checkout of the peer, only our own line."""
    peer = Peer(checkout) if checkout else None
    model = model_of(peer)
    tokens = tokens_of(BATCH, LENGTH + 1)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    graphdef, params = nnx.split(model)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(tokens)[0]

    models = {"ours": Contender(nnx.to_pure_dict(params), inputs, apply)}
    prompt, new = tokens_of(1, PROMPT), tokens_of(STEPS, 1)
    decoders = {"ours": our_decoder(model, prompt)}
    if peer:
        models["recurrentgemma"] = Contender(peer.params, inputs, peer.apply)
        decoders["recurrentgemma"] = peer.decoder(prompt)
        _check_same(models, decoders, labels, new)
    compiled = {
        name: compile_step(model, labels).seconds for name, model in models.items()
    }
    steppers = {name: stepper(model, labels) for name, model in models.items()}
    steppers["no scan"] = stepper(models["ours"], labels)
    with mock.patch("ssm.ops.rg_lru_scan", without_scan):
        steppers["no scan"]()
    steps = interleaved(steppers, repeats=7)
    decoding = interleaved(
        {name: functools.partial(decode, new) for name, decode in decoders.items()},
        repeats=21,
    )
    rows = [
        [
            name,
            f"{1e3 * steps[name]:.0f}",
            f"{compiled[name]:.1f}",
            f"{STEPS / decoding[name]:,.0f}",
        ]
        for name in models
    ]
    if peer:
        ratios = [
            at_least(seconds["recurrentgemma"] / seconds["ours"], goal)
            for seconds, goal in ((steps, 2), (compiled, 1), (decoding, 2))
        ]
        rows.append(["ratio", *ratios])
    rows.append(["ours, without a scan", f"{1e3 * steps['no scan']:.0f}", "", ""])
    source = "was read from" if peer else "was not measured: it needs"
    return (
        f"RecurrentGemma, {SIZE.n_layers} layers, d_model {SIZE.d_model}, window "
        f"{WINDOW}, vocabulary {VOCABULARY:,}, float32.\nA training step on {BATCH} x "
        f"{LENGTH} tokens, AdamW; decoding {STEPS} tokens one by one, batch 1, after a "
        f"prompt of {PROMPT}.\n\n"
        + table(["model", "step ms", "compile s", "decoded tokens/s"], rows)
        + f"\n\nrecurrentgemma {source} `--recurrent-gemma CHECKOUT`."
    )


def _check_same(
    models: dict[str, Contender],
    decoders: dict[str, Callable[[jax.Array], jax.Array]],
    labels: jax.Array,
    new: jax.Array,
) -> None:
    """Hold the two to each other: logits, decoded logits, and gradients."""
    one, other = models.values()
    mine, theirs = (jax.jit(m.apply)(m.params, m.inputs) for m in (one, other))
    check_close("logits", mine, theirs, TOLERANCE)
    mine, theirs = (decode(new) for decode in decoders.values())
    check_close("decoded logits", mine, theirs, TOLERANCE)
    grads, others = (
        jax.jit(jax.grad(m.loss))(m.params, m.inputs, labels) for m in (one, other)
    )
    # Their trees differ; all other gradients have a part in that of the embedding.
    mine, theirs = (_of_shape(g, (VOCABULARY, SIZE.d_model)) for g in (grads, others))
    check_close("gradient of the embedding", mine, theirs, TOLERANCE)


def _of_shape(tree: Any, shape: tuple[int, ...]) -> jax.Array:
    """Return the one leaf of a shape."""
    (leaf,) = (leaf for leaf in jax.tree.leaves(tree) if leaf.shape == shape)
    return leaf
