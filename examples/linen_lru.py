"""An LRU layer in a Flax Linen model of your own, through Flax's bridge."""

import jax
from flax import linen as nn
from flax import nnx

import ssm


class Tagger(nn.Module):
    """Label every element of a sequence: (B, T, 3) -> (B, T, n_labels)."""

    d_model: int
    n_labels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits."""
        lru = nnx.bridge.to_linen(ssm.LRU, self.d_model, 2 * self.d_model, name="mixer")
        y, _ = lru(nn.Dense(self.d_model)(x))
        return nn.Dense(self.n_labels)(nn.gelu(y))


def main() -> None:
    """Initialise, apply, and differentiate: the layer's parameters are ordinary."""
    model = Tagger(d_model=16, n_labels=5)
    x = jax.random.normal(jax.random.key(1), (2, 12, 3))
    variables = model.init(jax.random.key(0), x)
    gradient = jax.grad(lambda v: (model.apply(v, x) ** 2).sum())(variables)
    print(f"logits {model.apply(variables, x).shape}")
    print(f"parameters with a gradient: {', '.join(gradient['params']['mixer'])}")


if __name__ == "__main__":
    main()
