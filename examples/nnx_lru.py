"""An LRU layer in a Flax NNX model of your own."""

import jax
from flax import nnx

import ssm


class Tagger(nnx.Module):
    """Label every element of a sequence: (B, T, 3) -> (B, T, n_labels)."""

    def __init__(self, d_model: int, n_labels: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Linear(3, d_model, rngs=rngs)
        self.mixer = ssm.LRU(d_model, d_state=2 * d_model, rngs=rngs)
        self.head = nnx.Linear(d_model, n_labels, rngs=rngs)

    def __call__(self, x: jax.Array, carry: jax.Array | None = None):
        """Return logits, and the carry with which the next chunk goes on."""
        y, carry = self.mixer(self.embed(x), carry)
        return self.head(jax.nn.gelu(y)), carry


def main() -> None:
    """Run a sequence whole, and in two chunks."""
    model = Tagger(d_model=16, n_labels=5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 12, 3))
    whole, _ = model(x)
    first, carry = model(x[:, :7])
    second, _ = model(x[:, 7:], carry)
    chunks = jax.numpy.concatenate([first, second], axis=1)
    print(f"logits {whole.shape}, whole - chunks {abs(whole - chunks).max():.0e}")


if __name__ == "__main__":
    main()
