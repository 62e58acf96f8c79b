"""Every key of a run, with its default and unit; `families.py` has those of its model.

A config file starts from `get_config`, names its task and a model of `families.py`, and
then sets what differs; the result is locked, so a mistyped key fails where it is
written.

    def get_config(variant="lru"):
        family, words = base.parse_variant(variant, ("lru",), modifiers=("tiny",))
        config = base.get_config(
            task={"name": "digits"},
            model=families.lru(d_model=32, n_layers=2, d_state=64),
        )
        config.train.steps = 2_000
        return config
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict


def get_config(
    *,
    task: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """Return the locked defaults for a task and a model.

    Args:
      task: `name`, one of `experiments.builders.TASKS`, and the arguments of that task.
      model: keys of `config.model`, as a function of `families.py` returns them. They
        must have `mixer` and `block`: each a `name`, one of `MIXERS` and of `BLOCKS` in
        `experiments.builders`, and its arguments.
      data: further keys of `config.data`, arguments of the task as well.
    """
    config = ConfigDict()
    config.seed = 0  # of initialisation, shuffling and dropout; never of the data split
    config.seeds = ""  # "0,1,2": one run each, in WORKDIR/seed-0 ...; "": `seed` alone

    config.task = ConfigDict(dict(task))

    config.data = ConfigDict()
    config.data.cache_dir = "~/.cache/ssm-lab"  # prepared data and compiled programs
    config.data.source = ""  # where a task finds its raw files, if it needs any
    config.data.update(data or {})

    config.model = ConfigDict()
    config.model.d_model = 128
    config.model.n_layers = 6
    config.model.pooling = "mean"  # "mean" | "last": classifiers only
    config.model.tied = False  # output = embedding transposed: language models only
    config.model.head = "linear"  # "linear" | "plain", without bias: if not tied
    config.model.embedding_scale = 1.0  # of the inputs: language models only
    config.model.soft_cap = 0.0  # bound of the logits, 0: off; language models only
    config.model.final_norm = "none"  # or one of NORMS, experiments/families.py
    config.model.scan_layers = False  # one compiled block instead of n_layers
    config.model.remat = False  # recompute activations in the backward pass
    config.model.dtype = "float32"  # of the computation
    config.model.param_dtype = "float32"  # of the parameters
    config.model.implementation = ""  # of the recurrence; empty: fastest available
    config.model.matmul_precision = "default"  # "high" | "highest": of float32 products
    config.model.update(ConfigDict(dict(model)))

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.learning_rate = 1e-3  # at its peak
    config.optimizer.schedule = "cosine"  # or "constant", "waves"; after the warm-up
    config.optimizer.wave_steps = 0  # where a cosine of "waves" is 0, and rises again
    config.optimizer.warmup_fraction = 0.1  # of train.steps; linear from 1e-7
    config.optimizer.final_learning_rate = 1e-6  # cosine only
    config.optimizer.weight_decay = 0.05  # multiplied by the learning rate
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 0.0  # of the global gradient; 0: off
    config.optimizer.recurrence_factor = 0.25  # times the rate, for recurrence params
    config.optimizer.decay_norm_and_bias = True  # weight decay on norms and biases too
    # Other groups for parameters by name, "log_dt=undecayed b_re=slow": `undecayed` has
    # the rate and no decay, `slow` the rate of recurrence params and decay; or
    # `regular`, `recurrence`, `norm_and_bias`.
    config.optimizer.regroup = ""
    config.optimizer.ema_decay = 0.0  # per step; the average is evaluated; 0: off

    config.train = ConfigDict()
    config.train.steps = 10_000
    config.train.batch_size = 32  # examples a step, over all devices
    config.train.accumulate_steps = 1  # micro-batches a step

    config.evaluate = ConfigDict()
    config.evaluate.every_steps = 1_000  # and at the last step
    config.evaluate.batch_size = 64  # examples, over all devices

    config.checkpoint = ConfigDict()  # also written at every evaluation
    config.checkpoint.every_steps = 1_000
    config.checkpoint.keep_last = 2  # besides the best on validation

    config.log = ConfigDict()
    config.log.every_steps = 50  # training metrics are means over this many steps
    config.log.every_seconds = 5.0  # between progress lines where there is no terminal
    config.log.tensorboard = False
    config.log.wandb = False

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: all that the others leave
    config.mesh.fsdp = 1  # devices that share a batch and the parameters
    config.mesh.time = 1  # devices that share each sequence

    config.benchmark = ConfigDict()
    config.benchmark.beside = "associative"  # implementation to time the step beside
    return config.lock()


def parse_variant(
    variant: str, families: Collection[str], modifiers: Collection[str] = ()
) -> tuple[str, frozenset[str]]:
    """Split `family,modifier,...` and return the family and the set of modifiers.

    Raises:
      ValueError: a word is unknown, or repeated; names the closest and all known ones.
    """
    family, *words = variant.split(",")
    _check_word(family, "family", families)
    for word in words:
        _check_word(word, "modifier", modifiers)
    if len(set(words)) < len(words):
        raise ValueError(f"variant {variant!r} names a modifier twice")
    return family, frozenset(words)


def _check_word(word: str, kind: str, known: Collection[str]) -> None:
    if word in known:
        return
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    names = ", ".join(known) if known else "none"
    raise ValueError(f"unknown {kind} {word!r} in the variant{hint} (known: {names})")
