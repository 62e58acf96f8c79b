"""The command line: flags, the config file and its overrides, read without jax.

Everything a user can mistype is refused here, before any slow import.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.errors import UserError

MODES = ("train", "evaluate", "prepare", "benchmark")

DTYPES = ("float32", "bfloat16", "float16", "float64")

# Where a run may be continued with other values than it began with.
FREE_KEYS = ("mesh.", "log.", "checkpoint.", "benchmark.", "data.cache_dir", "seeds")


@dataclasses.dataclass(frozen=True)
class Command:
    """A whole command line, checked."""

    config: ConfigDict
    config_file: str
    variant: str
    mode: str
    workdir: Path
    distributed: str  # "auto" | "on" | "off"
    coordinator_address: str | None
    process_count: int | None
    process_id: int | None

    def description(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {
            "config_file": self.config_file,
            "variant": self.variant,
            "config": self.config.to_dict(),
        }


def parse(argv: Sequence[str]) -> Command:
    """Read `argv` (program name first).

    Raises:
      UserError: for whatever is wrong with the flags, the file or an override.
    """
    try:
        return _parse(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error


def _parse(argv: Sequence[str]) -> Command:
    file_flag = flags.FlagValues()
    flags.DEFINE_string("config", None, "config file", flag_values=file_flag)
    rest = file_flag(list(argv), known_only=True)
    if file_flag.config is None:
        raise UserError("--config is missing: give --config=configs/FILE.py:VARIANT")
    config_file, _, variant = file_flag.config.partition(":")
    defaults, variant = load(config_file, variant)
    _check_override_names(rest, defaults)

    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", defaults.copy_and_resolve_references(), "", values, sys_argv=rest
    )
    flags.DEFINE_enum("mode", "train", MODES, "", values)
    flags.DEFINE_string("workdir", None, "", values)
    flags.DEFINE_enum("distributed", "auto", ("auto", "on", "off"), "", values)
    flags.DEFINE_string("coordinator_address", None, "", values)
    flags.DEFINE_integer("process_count", None, "", 1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "", 0, flag_values=values)
    positional = values(rest)[1:]
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}: flags start with --")
    if values.workdir is None and values.mode in ("train", "evaluate"):
        raise UserError("--workdir is missing: name the directory that holds the run")
    cluster = (values.coordinator_address, values.process_count, values.process_id)
    if None in cluster and cluster != (None, None, None):
        raise UserError(
            "--coordinator_address, --process_count and --process_id go together"
        )

    config = _override(defaults, config_flags.get_override_values(values["config"]))
    check(config)
    return Command(
        config=config,
        config_file=config_file,
        variant=variant,
        mode=values.mode,
        workdir=Path(values.workdir or ".").expanduser().absolute(),
        distributed=values.distributed,
        coordinator_address=values.coordinator_address,
        process_count=values.process_count,
        process_id=values.process_id,
    )


def load(config_file: str, variant: str = "") -> tuple[ConfigDict, str]:
    """Return the config that a file makes of a variant, locked, and the variant.

    An empty variant stands for the default of `get_config`'s argument.

    Raises:
      UserError: no such file, an unknown variant, or an error inside the file.
    """
    module = load_module(config_file)
    with inside(config_file):
        (parameter,) = inspect.signature(module.get_config).parameters.values()
        variant = variant or parameter.default
        config = module.get_config(variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{config_file}: get_config must return a ConfigDict")
    return config.lock(), variant


def load_module(config_file: str) -> ModuleType:
    """Return what a config file defines.

    Raises:
      UserError: no such file, or an error inside it.
    """
    path = Path(config_file)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"no config file at {config_file!r}: give the path of a .py")
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with inside(config_file):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def inside(config_file: str) -> Iterator[None]:
    """Turn what goes wrong in a config file into a UserError that names the line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{config_file}: {error}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(Path(config_file))
        ]
        where = f"{config_file}:{lines[-1]}" if lines else config_file
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: {type(error).__name__}: {reason}") from error


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `section.key` -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a flat config what decides the numbers of a run."""
    return {key: v for key, v in flat.items() if not key.startswith(FREE_KEYS)}


def config_hash(flat: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name the identity of a flat config."""
    text = json.dumps(identity(flat), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_override_names(argv: Iterable[str], defaults: ConfigDict) -> None:
    names = set(flatten(defaults))
    for name in list(names):
        parts = name.split(".")
        names.update(".".join(parts[:end]) for end in range(1, len(parts)))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match and match[1] not in names:
            raise UserError(_unknown_key(match[1], names))


def _unknown_key(key: str, known: Iterable[str]) -> str:
    """Name the closest key, by its whole path or else by its last word alone."""
    known = sorted(known)
    words = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8) or [
        words[word]
        for word in difflib.get_close_matches(key.rpartition(".")[2], words, n=1)
    ]
    hint = f": did you mean {close[0]}?" if close else ""
    return f"unknown config key {key}{hint or '; configs/base.py lists every key'}"


def _override(defaults: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Apply overrides to the locked defaults, which check each key and type.

    A whole section, `--config.train="{'steps': 5}"`, replaces the keys it names.
    """
    config = defaults.copy_and_resolve_references()
    known = flatten(defaults)
    for path, value in overrides.items():
        flat = {path: value}
        if isinstance(value, ConfigDict):
            flat = {f"{path}.{key}": v for key, v in flatten(value).items()}
        for key, leaf in flat.items():
            if key not in known:
                raise UserError(_unknown_key(key, known))
            try:
                config.update_from_flattened_dict({key: leaf})
            except (TypeError, ValueError) as error:
                wanted = f"{key} is {type(known[key]).__name__}"
                raise UserError(f"config key {wanted}, got {leaf!r}") from error
    return config


def check(config: ConfigDict) -> None:
    """Refuse values that no run can have.

    Raises:
      UserError: naming the key, the value and what is wanted.
    """

    def want(key: str, holds: Callable[[Any], bool], wanted: str) -> None:
        section, _, name = key.partition(".")
        value = config[section][name]
        if not holds(value):
            raise UserError(f"config key {key} must be {wanted}, got {value!r}")

    for key in (
        "train.steps",
        "train.batch_size",
        "train.accumulate_steps",
        "evaluate.every_steps",
        "evaluate.batch_size",
        "checkpoint.every_steps",
        "checkpoint.keep_last",
        "log.every_steps",
        "mesh.fsdp",
        "mesh.time",
    ):
        want(key, lambda value: value >= 1, "at least 1")
    want("mesh.data", lambda value: value == -1 or value >= 1, "-1 or at least 1")
    for key in (
        "learning_rate",
        "final_learning_rate",
        "weight_decay",
        "clip_norm",
        "recurrence_factor",
    ):
        want(f"optimizer.{key}", lambda value: value >= 0, "at least 0")
    for key in ("warmup_fraction", "beta1", "beta2", "ema_decay"):
        want(f"optimizer.{key}", lambda value: 0 <= value < 1, "in [0, 1)")
    for key, names in (
        ("optimizer.schedule", ("cosine", "constant", "waves")),
        ("model.dtype", DTYPES),
        ("model.matmul_precision", ("default", "high", "highest")),
        ("model.param_dtype", DTYPES),
    ):
        want(key, names.__contains__, " or ".join(names))
