"""Configs are locked, list what they set, and are runnable as their header says."""

import inspect
import math

import pytest

from configs import digits
from configs.copying import delayed
from configs.lm import bytes as lm_bytes
from configs.lra import listops
from experiments.builders import BLOCKS, MIXERS

VARIANTS = [(module, f) for module in (digits, delayed) for f in module.MODELS]
VARIANTS += [(delayed, "lstm,chrono"), (delayed, "gru,chrono")]
VARIANTS += [
    (module, family + modifier)
    for module in (listops, lm_bytes)
    for family in module.MODELS
    for modifier in ("", ",tiny")
]


@pytest.mark.parametrize(("module", "variant"), VARIANTS)
def test_a_config_is_locked_and_its_header_says_how_to_run_it(module, variant):
    config = module.get_config(variant)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.model.mixer.d_sate = 1
    assert config == module.get_config(variant)
    file = module.__name__.replace(".", "/") + ".py"
    assert f"--config={file}" in module.__doc__
    if hasattr(module, "MODELS"):
        assert all(f"`{family}`" in module.__doc__ for family in module.MODELS)
    # Whole batches on 8 devices.
    assert config.train.batch_size % 8 == config.evaluate.batch_size % 8 == 0


@pytest.mark.parametrize(("module", "variant"), VARIANTS)
def test_no_argument_of_the_model_is_hidden(module, variant):
    """What its parts take is in the config, or common to all."""
    model = module.get_config(variant).model
    common = {"mixers", "shared", "self", "d_model", "implementation", "rngs"}
    common |= {"dtype", "param_dtype"}
    for part, known in ((model.mixer, MIXERS), (model.block, BLOCKS)):
        kind = known[part.name]
        takes = inspect.signature(kind.__init__ if isinstance(kind, type) else kind)
        assert set(part) - {"name"} == set(takes.parameters) - common


@pytest.mark.parametrize("module", [digits, delayed, listops, lm_bytes])
def test_an_unknown_variant_is_named(module):
    assert module.get_config() == module.get_config("lru")
    with pytest.raises(ValueError, match="lruu"):
        module.get_config("lruu")
    with pytest.raises(ValueError, match="tinny"):
        module.get_config("lru,tinny")


def test_listops_has_the_papers_hyper_parameters():
    config = listops.get_config("lru")
    assert (config.model.n_layers, config.model.d_model) == (6, 128)
    assert config.model.mixer.to_dict() == {
        "name": "lru",
        "d_state": 256,
        "r_min": 0.0,
        "r_max": 0.99,
        "max_phase": 2 * math.pi,
        "bidirectional": False,
    }
    block = config.model.block
    assert (block.norm, block.prenorm, block.glu, block.dropout) == (
        "batch",
        True,
        "full",
        0.0,
    )
    assert (config.train.steps, config.train.batch_size) == (80_000, 32)
    optimizer = config.optimizer
    assert (optimizer.recurrence_factor, optimizer.weight_decay) == (0.5, 0.05)
    assert (optimizer.schedule, optimizer.warmup_fraction) == ("cosine", 0.1)


def test_hgrn_has_the_published_settings():
    """Those of its authors' launch script for Long Range Arena."""
    config = listops.get_config("hgrn")
    model = config.model
    assert (model.n_layers, model.d_model, model.block.d_ff) == (6, 32, 32)
    assert (model.block.norm, model.block.activation) == ("batch", "silu")
    assert (model.mixer.convention, model.mixer.bidirectional) == ("exclusive", True)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (5e-4, 0.01)
    assert optimizer.recurrence_factor == 1.0
    assert (config.train.steps, config.train.batch_size) == (50_000, 128)
    assert optimizer.warmup_fraction * config.train.steps == 5_000


@pytest.mark.parametrize("family", delayed.MODELS)
def test_chrono_is_for_gates(family):
    """The longest memory is 1.5 times the delay, as in the paper's copy task."""
    if family not in ("lstm", "gru"):
        with pytest.raises(ValueError, match="modifier 'chrono'.*known: none"):
            delayed.get_config(f"{family},chrono")
        return
    assert delayed.get_config(family).model.mixer.chrono == 0
    config = delayed.get_config(f"{family},chrono")
    assert (config.task.delay, config.model.mixer.chrono) == (200, 300)


def test_minimax_has_the_published_proportions():
    model = lm_bytes.get_config("minimax").model
    assert (model.mixer.every, model.mixer.rope_fraction) == (8, 0.5)
    assert model.mixer.n_heads == 8 * model.mixer.n_kv_heads
    assert model.block.top_k == 2
