"""Train an LRU to remember, in one file: only ssm, optax and a loop of your own.

    python examples/train_lru.py

Delayed copy: the model reads eight symbols, then blanks, and at the signal it must say
the symbols in order. Chance is 1/8; a laptop gets all of them right in half a minute.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ssm
from ssm.blocks import S4Block
from ssm.models import LanguageModel

N_SYMBOLS, LENGTH, DELAY = 8, 8, 100
VOCABULARY = N_SYMBOLS + 2  # 0 is blank, the symbols are 1 to 8, 9 is the signal
BATCH, D_MODEL, D_STATE = 64, 64, 128


def make_batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return tokens (B, T) and the symbols (B, LENGTH) to be said at their end."""
    symbols = jax.random.randint(key, (BATCH, LENGTH), 1, N_SYMBOLS + 1)
    tokens = jnp.zeros((BATCH, LENGTH + DELAY + LENGTH), int)
    tokens = tokens.at[:, :LENGTH].set(symbols)
    return tokens.at[:, -LENGTH].set(VOCABULARY - 1), symbols


def make_block(rngs: nnx.Rngs) -> S4Block:
    """Put an LRU whose decays are slow enough for the delay into a residual block."""
    return S4Block(ssm.LRU(D_MODEL, D_STATE, r_min=0.98, rngs=rngs), D_MODEL, rngs=rngs)


def main(steps: int = 100, seed: int = 0) -> float:
    """Train, and return the accuracy over a batch that training has not seen."""
    init_key, train_key, test_key = jax.random.split(jax.random.key(seed), 3)
    model = LanguageModel(
        make_block,
        n_layers=1,
        d_model=D_MODEL,
        vocab_size=VOCABULARY,
        rngs=nnx.Rngs(init_key),
    )
    # A model is a static description and a dict of parameters: the rest is plain JAX.
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    optimizer = optax.adamw(3e-3)
    opt_state = optimizer.init(params)

    def loss_and_accuracy(params, tokens, symbols):
        logits, _ = nnx.merge(graphdef, params)(tokens)
        logits = logits[:, -LENGTH:]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, symbols)
        return loss.mean(), (logits.argmax(-1) == symbols).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, step):
        batch = make_batch(jax.random.fold_in(train_key, step))
        gradient, accuracy = jax.grad(loss_and_accuracy, has_aux=True)(params, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, accuracy

    for step in range(steps):
        params, opt_state, accuracy = train_step(params, opt_state, step)
        if step % 10 == 0:
            print(f"step {step:4d}  accuracy {accuracy:.3f}")
    _, accuracy = loss_and_accuracy(params, *make_batch(test_key))
    print(f"accuracy on new sequences {accuracy:.3f}")
    return float(accuracy)


if __name__ == "__main__":
    main()
