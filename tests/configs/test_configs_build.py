"""Every config makes a task and a model that fit together, and trains."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.lm import bytes as lm_bytes
from configs.lra import image, listops, pathfinder, pathx, retrieval, text
from experiments import builders
from experiments.errors import UserError
from ssm import param_groups
from ssm.models import griffin, hgrn, minimax, transformer, transnormer
from tests.configs.test_configs import LRA, VARIANTS, families
from tests.pairwise import mostly_slow
from tests.ssm.law import QUICK_COMPILE


@pytest.fixture
def prose(tmp_path):
    """A file of enough text for every window."""
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 2_000)
    return path


SMALL = {
    "listops": {"min_length": 10, "max_length": 64},
    "delayed_copy": {"delay": 20},
    "byte_text": {"length": 64},
    "text": {"max_length": 181, "max_bytes": 180, "min_bytes": 60},
    "retrieval": {"max_length": 64, "window_length": 40},
    "pathfinder": {"n_images": 40, "contour_length": 6},
    "pathx": {"n_images": 40, "contour_length": 6, "resolution": 64},
}
ROWS = {"train_size": 40, "validation_size": 8, "test_size": 8}


def small(config, tmp_path, prose):
    """The same, with little data, drawn here, and short rows."""
    config.data.cache_dir = str(tmp_path)
    task = config.task
    task.update(SMALL.get(task.name, {}))
    task.update({key: n for key, n in ROWS.items() if key in task})
    if task.name == "byte_text":
        config.data.path = str(prose)
    if task.name in ("text", "retrieval"):
        config.data.source = "stand-in"
    return config


def loss_of(config, task):
    """A model's abstract parameters and other state, and its loss."""
    create = builders.build_model(config, task)
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, batch, train):
        return task.loss(nnx.merge(graphdef, params, rest), batch, train=train)

    return create, (params, rest), loss


QUICK = [
    (listops, "liquid_s4,tiny"),
    (listops, "minimax,tiny"),
    (text, "griffin,tiny"),
    (text, "s4,tiny"),
    (retrieval, "transformer,tiny"),
    (retrieval, "s5,tiny"),
    (image, "hgrn,tiny"),
    (pathfinder, "lru,tiny"),
    (pathfinder, "hgrn,tiny"),
    (pathx, "s4d,tiny"),
]


def fitting():
    """All variants; of the newer families the small ones have every part too.

    Of Long Range Arena the small ones: what the others differ in, `test_golden` holds.
    """
    for module, variant in VARIANTS:
        if module in LRA and not variant.endswith("tiny"):
            continue
        slow = variant in ("hgrn", "hgrn2", "transnormer", "minimax")
        slow |= module in LRA and (module, variant) not in QUICK
        name = f"{module.__name__}:{variant}"
        marks = pytest.mark.slow if slow else ()
        yield pytest.param(module, variant, id=name, marks=marks)


@pytest.mark.parametrize(("module", "variant"), list(fitting()))
def test_task_and_model_fit(module, variant, tmp_path, prose):
    config = small(module.get_config(variant), tmp_path, prose)
    task = builders.build_task(config)
    _, state, loss = loss_of(config, task)
    train = task.train_batch(0, 0, 4)
    test = task.eval_batch("test", np.arange(4))
    for batch, training in ((train, True), (test, False)):
        total, weight, sums = jax.eval_shape(
            lambda *state, training=training: loss(*state, training),
            *state,
            batch,
        )
        assert total.shape == weight.shape == ()
        assert {"loss", "accuracy"} <= set(sums)


TINY = [(module, f) for module in (listops, lm_bytes) for f in families(module)]


@pytest.mark.parametrize(
    "of",
    mostly_slow(
        TINY,
        (lm_bytes, "griffin"),
        (listops, "hgrn2"),
        (listops, "s5"),
        (lm_bytes, "minimax"),
    ),
)
def test_a_step_is_finite_and_moves_every_parameter(of, tmp_path, prose):
    module, family = of
    config = small(module.get_config(f"{family},tiny"), tmp_path, prose)
    config.model.d_model = 16
    task = builders.build_task(config)
    create, _, loss = loss_of(config, task)
    batch = jax.tree.map(jnp.asarray, task.train_batch(0, 0, 2))

    def largest_gradients(key):
        params, rest = map(
            nnx.to_pure_dict, nnx.state(create(key), nnx.Param, nnx.Not(nnx.Param))
        )
        gradients = jax.grad(lambda params: loss(params, rest, batch, True)[0])(params)
        return jax.tree.map(lambda g: jnp.abs(g).max(), gradients)

    run = jax.jit(largest_gradients, compiler_options=QUICK_COMPILE)
    for path, largest in jax.tree.leaves_with_path(run(jax.random.key(0))):
        assert 0 < largest < jnp.inf, jax.tree_util.keystr(path)


TEXT = types.SimpleNamespace(
    model_kind="language_model", model_kwargs={"vocab_size": 257}
)


PRESETS = {
    "hawk": (griffin.hawk, griffin.Size(128, 3, 4, lru_width=128, d_ff=240), {}),
    "griffin": (
        griffin.griffin,
        griffin.Size(128, 3, 4, lru_width=128, d_ff=256),
        {"window": 128},
    ),
    "transformer": (
        transformer.transformer,
        transformer.Size(128, 3, 4, d_ff=224),
        {},
    ),
    "hgrn": (hgrn.hgrn, hgrn.Size(128, 3, 80), {}),
    "hgrn2": (hgrn.hgrn2, hgrn.Size(128, 3, 184, n_heads=4), {}),
    "transnormer": (transnormer.transnormer, transnormer.Size(128, 3, 4, 176), {}),
    "minimax": (
        minimax.minimax,
        minimax.Size(128, 3, 4, 32, 1, 44, n_experts=4, every=3),
        {"balance_weight": 0.01},
    ),
}


@pytest.mark.parametrize("family", mostly_slow(list(PRESETS), "transformer"))
def test_a_config_builds_the_preset(family):
    """The same parameters from the same key."""
    make, size, options = PRESETS[family]

    def preset(key):
        return make(size, vocab_size=257, rngs=nnx.Rngs(key), **options)

    def parts(create):
        return nnx.split(create(jax.random.key(3)))

    built = builders.build_model(lm_bytes.get_config(f"{family},tiny"), TEXT)
    (got_graph, got), (graph, wanted) = parts(built), parts(preset)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    tokens = jnp.arange(12)[None]
    logits, _ = nnx.merge(got_graph, got)(tokens)
    np.testing.assert_array_equal(logits, nnx.merge(graph, wanted)(tokens)[0])


RECURRENCE = {
    "hgrn": {("coupling", "gamma"), ("mixer", "theta")},
    "hgrn2": {("coupling", "gamma")},
    "transnormer": {("mixer", "theta")},
    "minimax": set(),
}


@pytest.mark.parametrize("family", RECURRENCE)
def test_groups_of_parameters(family):
    """Bounds and phases are apart; slopes are no parameters, experts no biases."""
    create = builders.build_model(lm_bytes.get_config(f"{family},tiny"), TEXT)
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    labels = nnx.traversals.flatten_mapping(param_groups.labels(model))
    groups = {"recurrence": set(), "norm_and_bias": set(), "regular": set()}
    for path, label in labels.items():
        groups[label].add(path[-2:])
    assert groups["recurrence"] == RECURRENCE[family]
    assert {name for _, name in groups["norm_and_bias"]} <= {"scale", "bias"}
    experts = {("mlp", "gate"), ("mlp", "up"), ("mlp", "down")}
    assert {name for _, name in groups["regular"] - experts} == {"kernel", "embedding"}


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


def unknown_norm(model):
    model.block.norm = "grams"


def unknown_final_norm(model):
    model.final_norm = "batch"


def looking_ahead(model):
    model.mixer.bidirectional = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_name, "model.mixer.name='gryphon' is not one of: griffin, gru, hawk, "),
        (missing_argument, "section model.mixer: missing .* argument: 'window'"),
        (unknown_argument, "section model.block: .* unexpected .* 'd_fff'"),
        (no_layer_argument, "section model.mixer: .* unexpected .* 'r_mean'"),
        (impossible_value, "section model: .* n_heads=3 does not divide d_model=128"),
        (unknown_norm, "section model: norm='grams' is not one of: batch, batch_0.9, "),
        (unknown_final_norm, "section model: final_norm='batch' is not one of: gem"),
        (looking_ahead, "section model.mixer: .* looks ahead, .* bidirectional=False"),
    ],
)
def test_what_a_model_cannot_have_is_named(change, message):
    config = lm_bytes.get_config("griffin,tiny")
    with config.unlocked():
        change(config.model)
    with pytest.raises(UserError, match=message):
        builders.build_model(config, TEXT)(jax.random.key(0))
