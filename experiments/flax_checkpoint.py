"""Convert DeepMind's RecurrentGemma checkpoints for flax to the Hugging Face layout.

python -m experiments.flax_checkpoint --checkpoint=DIR --size=2b|9b --out=DIR

`ssm.pretrained.load` reads what is written. The whole checkpoint is in memory twice
while it is converted. Exit code 0, or 1 with the reason.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Run a command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.flax_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv[1:])
    try:
        convert(options.checkpoint, options.size, options.out)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def convert(checkpoint: Path, size: str, out: Path) -> None:
    """Write a released model, of a size such as "2b", in the Hugging Face layout.

    Raises:
      UserError: there is no such size, the checkpoint cannot be read or is of another
        model, or `out` has files in it.
    """
    # jax and orbax take seconds to import: only now.
    from ssm import pretrained
    from ssm.models import griffin

    if size not in griffin.RECURRENT_GEMMA:
        raise UserError(
            f"--size={size} is unknown, wanted one of "
            f"{', '.join(griffin.RECURRENT_GEMMA)}"
        )
    config = pretrained.RecurrentGemma(griffin.RECURRENT_GEMMA[size])
    tree = restore(checkpoint)
    try:
        pretrained.save(pretrained.from_flax(tree, config), out)
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    except FileExistsError as error:
        raise UserError(str(error)) from error


def restore(checkpoint: Path) -> dict[str, Any]:
    """Return the nested dicts of an orbax checkpoint, with numpy arrays.

    The devices on which it was saved need not exist.

    Raises:
      UserError: it cannot be read.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)  # failures are worded here
    checkpointer = ocp.PyTreeCheckpointer()
    try:
        metadata = checkpointer.metadata(checkpoint.absolute()).item_metadata
        if metadata is None:
            raise FileNotFoundError("no metadata of arrays")
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        restore_args = jax.tree.map(lambda _: as_numpy, metadata.tree)
        return checkpointer.restore(checkpoint.absolute(), restore_args=restore_args)
    except Exception as error:  # orbax promises no type for damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{checkpoint} is no orbax checkpoint that can be read ({reason[0]}): name "
            "the directory that has _METADATA in it, or download it again"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv))
