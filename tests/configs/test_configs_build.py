"""Every config makes a task and a model that fit together, and trains."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.lm import bytes as lm_bytes
from configs.lra import listops
from experiments import builders
from experiments.errors import UserError
from ssm.models import griffin, transformer
from tests.configs.test_configs import VARIANTS
from tests.pairwise import mostly_slow
from tests.ssm.law import QUICK_COMPILE


@pytest.fixture
def text(tmp_path):
    """A file of enough text for every window."""
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 2_000)
    return path


def small(config, tmp_path, text):
    """The same, with little data and short rows."""
    config.data.cache_dir = str(tmp_path)
    if config.task.name == "listops":
        config.task.update(train_size=40, validation_size=8, test_size=8)
        config.task.update(min_length=10, max_length=64)
    if config.task.name == "delayed_copy":
        config.task.delay = 20
    if config.task.name == "byte_text":
        config.data.path = str(text)
        config.task.length = 64
    return config


def loss_of(config, task):
    """A model's abstract state, and its loss as a function of state and batch."""
    create = builders.build_model(config, task)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: create(jax.random.key(0))))

    def loss(state, batch, train):
        return task.loss(nnx.merge(graphdef, state), batch, train=train)

    return create, state, loss


@pytest.mark.parametrize(
    ("module", "variant"),
    VARIANTS,
    ids=[f"{module.__name__}:{variant}" for module, variant in VARIANTS],
)
def test_task_and_model_fit(module, variant, tmp_path, text):
    config = small(module.get_config(variant), tmp_path, text)
    task = builders.build_task(config)
    _, state, loss = loss_of(config, task)
    train = task.train_batch(0, 0, 4)
    test = task.eval_batch("test", np.arange(4))
    for batch, training in ((train, True), (test, False)):
        total, weight, sums = jax.eval_shape(
            lambda state, batch, training=training: loss(state, batch, training),
            state,
            batch,
        )
        assert total.shape == weight.shape == ()
        assert {"loss", "accuracy"} <= set(sums)


TINY = [(module, family) for module in (listops, lm_bytes) for family in module.MODELS]


@pytest.mark.parametrize(
    "of", mostly_slow(TINY, (lm_bytes, "griffin"), (listops, "transformer"))
)
def test_a_step_is_finite_and_moves_every_parameter(of, tmp_path, text):
    module, family = of
    config = small(module.get_config(f"{family},tiny"), tmp_path, text)
    config.model.d_model = 16
    task = builders.build_task(config)
    create, _, loss = loss_of(config, task)
    batch = jax.tree.map(jnp.asarray, task.train_batch(0, 0, 2))

    def largest_gradients(key):
        params = nnx.to_pure_dict(nnx.state(create(key), nnx.Param))
        gradients = jax.grad(lambda params: loss(params, batch, True)[0])(params)
        return jax.tree.map(lambda g: jnp.abs(g).max(), gradients)

    run = jax.jit(largest_gradients, compiler_options=QUICK_COMPILE)
    for path, largest in jax.tree.leaves_with_path(run(jax.random.key(0))):
        assert 0 < largest < jnp.inf, jax.tree_util.keystr(path)


TEXT = types.SimpleNamespace(
    model_kind="language_model", model_kwargs={"vocab_size": 257}
)


@pytest.mark.parametrize("family", ["hawk", "griffin", "transformer"])
def test_a_config_builds_the_preset(family):
    """The same parameters from the same key."""

    def preset(key):
        rngs, vocabulary = nnx.Rngs(key), {"vocab_size": 257}
        if family == "transformer":
            size = transformer.Size(128, 3, 4, d_ff=224)
            return transformer.transformer(size, rngs=rngs, **vocabulary)
        d_ff = 240 if family == "hawk" else 256
        size = griffin.Size(128, 3, 4, lru_width=128, d_ff=d_ff)
        options = {"window": 128} if family == "griffin" else {}
        return getattr(griffin, family)(size, rngs=rngs, **options, **vocabulary)

    def parts(create):
        return nnx.split(create(jax.random.key(3)))

    built = builders.build_model(lm_bytes.get_config(f"{family},tiny"), TEXT)
    (got_graph, got), (graph, wanted) = parts(built), parts(preset)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    tokens = jnp.arange(12)[None]
    logits, _ = nnx.merge(got_graph, got)(tokens)
    np.testing.assert_array_equal(logits, nnx.merge(graph, wanted)(tokens)[0])


@pytest.mark.parametrize("modifier", ["", ",tiny"])
def test_byte_models_have_the_same_budget(modifier):
    def count(family):
        create = builders.build_model(lm_bytes.get_config(family + modifier), TEXT)
        model = nnx.eval_shape(lambda: create(jax.random.key(0)))
        params = jax.tree.leaves(nnx.state(model, nnx.Param))
        return sum(math.prod(param.shape) for param in params)

    counts = [count(family) for family in lm_bytes.MODELS]
    assert max(counts) < 1.07 * min(counts)


def wrong_name(model):
    model.mixer.name = "gryphon"


def missing_argument(model):
    del model.mixer.window


def unknown_argument(model):
    model.block.d_fff = 1


def no_layer_argument(model):
    model.mixer = {"name": "lru", "d_state": 4, "r_mean": 0.5}


def impossible_value(model):
    model.mixer.n_heads = 3


def looking_ahead(model):
    model.mixer.bidirectional = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_name, "model.mixer.name='gryphon' is not one of: griffin, hawk, lru, "),
        (missing_argument, "section model.mixer: missing .* argument: 'window'"),
        (unknown_argument, "section model.block: .* unexpected .* 'd_fff'"),
        (no_layer_argument, "section model.mixer: .* unexpected .* 'r_mean'"),
        (impossible_value, "section model: .* n_heads=3 does not divide d_model=128"),
        (looking_ahead, "section model.mixer: .* looks ahead, .* bidirectional=False"),
    ],
)
def test_what_a_model_cannot_have_is_named(change, message):
    config = lm_bytes.get_config("griffin,tiny")
    with config.unlocked():
        change(config.model)
    with pytest.raises(UserError, match=message):
        builders.build_model(config, TEXT)(jax.random.key(0))
