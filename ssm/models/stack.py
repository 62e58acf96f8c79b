"""Blocks on top of each other: one by one, or as one scan over stacked parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from ssm.layers.base import Carry, SequenceLayer, Stepping
from ssm.ops.sharding import constrain

MakeLayer = Callable[[nnx.Rngs], SequenceLayer]
"""Builds one layer from its random streams, for a block around it."""

MakeBlock = Callable[[nnx.Rngs], nnx.Module]
"""Builds one block from its random streams; called once per layer."""


@dataclasses.dataclass(frozen=True)
class Coupled:
    """Builders of blocks that depend on each other, or on their place in the stack.

    Attributes:
      make_block: the builders, as for a `Stack`.
      make_coupling: builds one module for the whole stack from the number of layers and
        the random streams. Called without arguments it returns a dict of arrays with a
        leading axis of layers, made anew in every forward pass, so that what is learned
        in it is learned from all layers. Each block gets its own row of them as
        keywords of its call.
    """

    make_block: MakeBlock | Sequence[MakeBlock]
    make_coupling: Callable[[int, nnx.Rngs], nnx.Module]


Pattern = Sequence[MakeBlock] | Coupled
"""Builders that take turns, in the order of the layers."""


class Stack(Stepping, nnx.Module):
    """`n_layers` blocks of the same make, or of several that take turns.

        y, carry = stack(x, carry=None, *, reset=None, key=None, mask=None, train=False)

    Shapes: x (B, T, D) -> y (B, T, D). The carry holds one carry per block, in a tuple;
    see `scan_layers` for its other form.

    Args:
      make_block: builds a block from its random streams, for instance
        `lambda rngs: S4Block(LRU(64, 64, rngs=rngs), 64, rngs=rngs)`; or a sequence of
        such builders: layer i is made by the one at place i modulo their number; or
        either with what couples the layers, see `Coupled`.
      n_layers: how many.
      scan_layers: hold the parameters of all blocks stacked and run them by `lax.scan`,
        which compiles one block instead of all. Initial values, outputs and gradients
        are the same up to rounding. The carry is one pytree with a leading layer axis.
        Of several builders each has its own stack, one scan runs through all whole
        rounds, and the layers left over follow one by one; the carry is a pair: a tuple
        of one such pytree per builder, and a tuple of one carry per layer left over.
      remat: recompute the inside of each block in the backward pass, which then keeps
        only what passes between the blocks.

    Attributes:
      blocks: the blocks, or if scanned the stacked block, or a list of those, one per
        builder.
      coupling: what couples the layers, or None.
      rest: the blocks left over, where there are several builders and they are scanned.
    """

    def __init__(
        self,
        make_block: MakeBlock | Pattern,
        n_layers: int,
        *,
        scan_layers: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.n_layers, self.scan_layers, self.remat = n_layers, scan_layers, remat
        make_coupling = None
        if isinstance(make_block, Coupled):
            make_coupling = make_block.make_coupling
            make_block = make_block.make_block
        pattern = (make_block,) if callable(make_block) else tuple(make_block)
        if not pattern:
            raise ValueError("make_block is empty, wanted at least one builder")
        self.n_builders = len(pattern)
        keys = jax.random.split(rngs.params(), n_layers)

        def make(layer):
            return pattern[layer % self.n_builders](nnx.Rngs(keys[layer]))

        def stacked(place):
            own = keys[place : self.n_scanned : self.n_builders]
            return jax.vmap(lambda key: pattern[place](nnx.Rngs(key)))(own)

        self.coupling = make_coupling(n_layers, rngs) if make_coupling else None
        self.blocks: Any
        if not scan_layers:
            self.blocks = nnx.List([make(layer) for layer in range(n_layers)])
        elif self.n_builders == 1:
            self.blocks = stacked(0)
        else:
            places = range(self.n_builders if self.n_scanned else 0)
            rest = range(self.n_scanned, n_layers)
            self.blocks = nnx.List([stacked(place) for place in places])
            self.rest = nnx.List([make(layer) for layer in rest])

    @property
    def n_scanned(self) -> int:
        """How many layers whole rounds of the builders make, if they are scanned."""
        whole = self.n_layers - self.n_layers % self.n_builders
        return whole if self.scan_layers else 0

    def __call__(
        self,
        x: jax.Array,
        carry: Carry = None,
        *,
        reset: jax.Array | None = None,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Carry]:
        keys = None if key is None else jax.random.split(key, self.n_layers)
        x = constrain(x, "btd")
        coupling = {} if self.coupling is None else self.coupling()

        def coupled(layers):
            """What the layers at an index, or at a slice of them, are given."""
            return {name: value[layers] for name, value in coupling.items()}

        def apply(graphdef, params, statistics, x, carry, key, given):
            """One block as a pure function; what is not trained goes in and out."""
            block = nnx.merge(graphdef, params, statistics)
            options = {"key": key, "mask": mask, "train": train} | given
            x, carry = block(x, carry, reset=reset, **options)
            return constrain(x, "btd"), carry, nnx.state(block, nnx.Not(nnx.Param))

        def remat(prevent_cse):
            if not self.remat:
                return apply
            return jax.checkpoint(apply, static_argnums=0, prevent_cse=prevent_cse)

        def one_by_one(blocks, x, carry, keys, first=0):
            run, carries = remat(prevent_cse=True), []
            for i, block in enumerate(blocks):
                before = None if carry is None else carry[i]
                block_key = None if keys is None else keys[i]
                own = x, before, block_key, coupled(first + i)
                x, after, statistics = run(*_parts(block), *own)
                if train:
                    nnx.update(block, statistics)
                carries.append(after)
            return x, tuple(carries)

        def scanned(blocks, x, carry, keys):
            """All rounds through `blocks`, whose arrays have a leading axis of rounds.

            `carry` and `keys` have one entry per block, or are None.
            """
            count = len(blocks)
            given = [coupled(slice(i, self.n_scanned, count)) for i in range(count)]
            graphs, params, statistics = zip(*map(_parts, blocks), strict=True)
            nothing, run = (None,) * len(graphs), remat(prevent_cse=False)

            def one_round(x, layers):
                outputs = []
                for layer in zip(graphs, *layers, strict=True):
                    graphdef, params, statistics, carry, key, given = layer
                    x, *output = run(graphdef, params, statistics, x, carry, key, given)
                    outputs.append(output)
                return x, outputs

            layers = (params, statistics, carry or nothing, keys or nothing, given)
            x, outputs = jax.lax.scan(one_round, x, layers)
            for block, (_, after) in zip(blocks, outputs, strict=True):
                if train:
                    nnx.update(block, after)
            return x, tuple(carry for carry, _ in outputs)

        if not self.scan_layers:
            return one_by_one(self.blocks, x, carry, keys)
        if self.n_builders == 1:
            before = None if carry is None else (carry,)
            own = None if keys is None else [keys]
            x, (carry,) = scanned((self.blocks,), x, before, own)
            return x, carry

        before, before_rest = (None, None) if carry is None else carry
        own = own_rest = None
        if keys is not None:
            own_rest = keys[self.n_scanned :]
            of_rounds = keys[: self.n_scanned]
            own = [
                of_rounds[place :: self.n_builders] for place in range(len(self.blocks))
            ]
        after: tuple[Any, ...] = ()
        if self.blocks:
            x, after = scanned(tuple(self.blocks), x, before, own)
        first = self.n_scanned
        x, after_rest = one_by_one(self.rest, x, before_rest, own_rest, first)
        return x, (after, after_rest)

    def init_carry(self, batch_size: int, *, max_length: int | None = None) -> Carry:
        def one(block):
            return block.init_carry(batch_size, max_length=max_length)

        def each(blocks):
            return tuple(one(block) for block in blocks)

        if not self.scan_layers:
            return each(self.blocks)
        if self.n_builders == 1:
            return jax.vmap(one)(self.blocks)
        rounds = tuple(jax.vmap(one)(block) for block in self.blocks)
        return rounds, each(self.rest)


def _parts(module: nnx.Module) -> tuple[Any, Any, Any]:
    """The graph of a module, its parameters, and all else, as batch statistics."""
    graphdef, params, *rest = nnx.split(module, nnx.Param, ...)
    return graphdef, params, rest[0]
