import math

import pytest

from configs import digits
from configs.copying import delayed
from configs.lm import bytes as lm_bytes
from configs.lra import listops

VARIANTS = [
    (digits, "lru"),
    (delayed, "lru"),
    (listops, "lru"),
    (listops, "lru,tiny"),
    (lm_bytes, "lru"),
    (lm_bytes, "lru,tiny"),
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
    # Whole batches on 8 devices.
    assert config.train.batch_size % 8 == config.evaluate.batch_size % 8 == 0


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
