"""Configs are locked, list what they set, and are runnable as their header says."""

import inspect
import math
import re

import pytest

from configs import digits
from configs.copying import delayed
from configs.lm import bytes as lm_bytes
from configs.lra import image, listops, pathfinder, pathx, retrieval, text
from experiments.builders import BLOCKS, MIXERS

LRA = (listops, text, retrieval, image, pathfinder, pathx)


def families(module):
    return module.RECIPES if module in LRA else module.MODELS


VARIANTS = [(module, f) for module in (digits, delayed) for f in module.MODELS]
VARIANTS += [(delayed, "lstm,chrono"), (delayed, "gru,chrono"), (image, "lru,colour")]
VARIANTS += [
    (module, family + modifier)
    for module in (*LRA, lm_bytes)
    for family in families(module)
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
    words = set(re.findall(r"\w+", module.__doc__))
    assert words >= set(families(module))
    assert config.evaluate.batch_size % 8 == 0  # whole batches on 8 devices
    if module not in LRA or variant.endswith("tiny"):  # published ones are not
        assert config.train.batch_size % 8 == 0


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


@pytest.mark.parametrize("module", [digits, delayed, *LRA, lm_bytes])
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
