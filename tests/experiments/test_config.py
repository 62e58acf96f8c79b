"""Whatever can be mistyped on the command line is one line, before jax is imported."""

import re
import subprocess
import sys
import textwrap

import pytest

from configs import base
from experiments import config
from experiments.errors import UserError
from tests.experiments.conftest import CONFIG, ROOT


def parse(*flags: str) -> config.Command:
    return config.parse(["main", f"--config={CONFIG}:plain", "--workdir=w", *flags])


def refusal(*flags: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_overrides_take_the_type_of_the_default():
    command = parse(
        "--config.train.steps=7",
        "--config.optimizer.learning_rate=1",
        "--config.model.tied",
        "--noconfig.optimizer.decay_norm_and_bias",
        "--config.data.source",
        "a b",
    )
    assert command.config.train.steps == 7
    assert isinstance(command.config.optimizer.learning_rate, float)
    assert command.config.model.tied
    assert not command.config.optimizer.decay_norm_and_bias
    assert command.config.data.source == "a b"
    assert command.variant == "plain" and command.config_file == str(CONFIG)


def test_a_whole_section_replaces_the_keys_it_names():
    command = parse("--config.train={'steps': 7}")
    assert command.config.train.steps == 7
    assert command.config.train.batch_size == 16


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.optimizer.learning_rte=1", "optimizer.learning_rate"),
        ("--config.learning_rate=1", "optimizer.learning_rate"),
        ("--config.train={'stepz': 3}", "train.steps"),
        ("--config.zzz=1", "configs/base.py"),
        ("--wrkdir=x", "workdir"),
    ],
)
def test_a_mistyped_key_is_refused_and_the_closest_named(flag, named):
    assert named in refusal(flag)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config.train.steps=many", "train.steps"),
        ("--config.train.steps=1.5", "train.steps"),
        ("--config.train={'steps': 'many'}", "train.steps"),
        ("--config.train=3", "train"),
        ("--config.model.tied=maybe", "model.tied"),
        ("--config.train.steps", "train.steps"),
    ],
)
def test_a_wrong_type_is_refused_and_the_key_named(flag, named):
    assert named in refusal(flag)


@pytest.mark.parametrize(
    "flag",
    [
        "--config.train.steps=0",
        "--config.optimizer.schedule=cosin",
        "--config.model.dtype=float33",
        "--config.optimizer.warmup_fraction=1",
        "--config.mesh.data=0",
        "--config.train.batch_size=-1",
    ],
)
def test_an_impossible_value_is_refused_and_the_key_named(flag):
    assert flag.removeprefix("--config.").partition("=")[0] in refusal(flag)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--config=configs/none.py"], "configs/none.py"),
        ([f"--config={CONFIG}:plane", "--workdir=w"], "did you mean 'plain'"),
        ([f"--config={CONFIG}:plain,emma", "--workdir=w"], "did you mean 'ema'"),
        ([f"--config={CONFIG}"], "--workdir"),
        (["--workdir=w"], "--config"),
        ([f"--config={CONFIG}", "--workdir=w", "--mode=trian"], "mode"),
        ([f"--config={CONFIG}", "--workdir=w", "loose"], "loose"),
        ([f"--config={CONFIG}", "--workdir=w", "--process_id=0"], "go together"),
    ],
)
def test_a_wrong_flag_is_refused_and_named(flags, named):
    with pytest.raises(UserError, match=named):
        config.parse(["main", *flags])


def test_an_error_inside_a_config_file_names_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(
        textwrap.dedent("""\
        from configs import base

        def get_config(variant="a"):
            config = base.get_config(task={"name": "a"}, model={"d_model": 8})
            config.train.stepz = 1
            return config
        """)
    )
    with pytest.raises(UserError, match=r"broken.py:5: .*steps"):
        config.load(str(path))


def test_no_variant_is_the_default_one():
    command = config.parse(["main", f"--config={CONFIG}", "--workdir=w"])
    assert command.variant == "plain"


def test_parse_variant_wants_the_family_first():
    families, modifiers = ("lru", "s5"), ("tiny",)
    assert base.parse_variant("lru", families, modifiers) == ("lru", frozenset())
    assert base.parse_variant("s5,tiny", families, modifiers) == ("s5", {"tiny"})
    for wrong in ("", "tiny", "lru,s5", "lru,tiny,tiny", "lru,"):
        with pytest.raises(ValueError):
            base.parse_variant(wrong, families, modifiers)


def test_the_hash_ignores_what_a_run_may_change_and_nothing_else():
    def hashed(*flags: str) -> str:
        return config.config_hash(config.flatten(parse(*flags).config))

    free = ["--config.mesh.fsdp=2", "--config.log.every_steps=9"]
    free += ["--config.checkpoint.keep_last=9", "--config.data.cache_dir=elsewhere"]
    assert hashed(*free) == hashed()
    assert hashed("--config.data.source=elsewhere") != hashed()
    assert hashed("--config.seed=1") != hashed()


def test_a_refusal_is_quick_and_silent_about_everything_else(subprocess_env):
    flags = [f"--config={CONFIG}", "--workdir=w", "--config.train.stepz=1"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments.main", *flags],
        env=subprocess_env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if "import time" not in line]
    assert done.returncode == 1
    assert lines == ["error: unknown config key train.stepz: did you mean train.steps?"]
    assert not done.stdout
    assert not re.search(r"\| +jax$", done.stderr, re.MULTILINE)
