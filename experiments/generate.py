"""Let the language model of a run go on with a text.

python -m experiments.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT ...]
    [--max_new_tokens=N] [--temperature=T] [--top_k=K] [--top_p=P] [--seed=S]

The parameters are those that validation chose, of a finished run or of one that is not.
Prompts are the beginnings of documents, an empty one included; each is continued until
the model ends the document, or for max_new_tokens. Exit code 0, or 1 with the reason.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.errors import UserError
from experiments.workdir import Workdir


def main(argv: Sequence[str]) -> int:
    """Run a command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv[1:]))
    workdir, prompts = options.pop("workdir"), options.pop("prompt")
    try:
        for prompt, text in zip(
            prompts, continuations(workdir, prompts, **options), strict=True
        ):
            print(f"{prompt}{text}", end="\n\n")
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def continuations(
    workdir: Path, prompts: Sequence[str], *, seed: int, **options: float
) -> list[str]:
    """Return what the model of a run says after each prompt.

    `options` are those of `ssm.generate.generate`.

    Raises:
      UserError: there is no run, it is no language model of text, an option is off, or
        there is not the memory for what is asked.
    """
    # jax and orbax take seconds to import: only now.
    import jax
    from flax import nnx

    from experiments.checkpoint import Checkpoints
    from experiments.program import build, evaluated_params
    from experiments.tasks.base import TextTask
    from ssm.generate import generate, left_pad

    files = Workdir(workdir)
    description = files.read("config.json")
    if description is None:
        raise UserError(f"no run in {workdir}: name the --workdir of a training run")
    config = ConfigDict(description["config"])
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "time": 1})
    program = build(config, jax.devices()[:1])
    task = program.task
    if not isinstance(task, TextTask):
        raise UserError(
            f"the run in {workdir} is of the task {task.name}, which is not text"
        )
    with jax.set_mesh(program.mesh):
        checkpoints = Checkpoints(files.checkpoints, read_only=True)
        restored = checkpoints.restore_latest(program.target)
        if restored is None:
            raise UserError(f"no checkpoint in {files.checkpoints}: train first")
        state, counters = restored
        if counters.best is not None and counters.best["step"] in checkpoints.steps():
            state, _ = checkpoints.restore(counters.best["step"], program.target)
        model = nnx.merge(
            program.graphdef, evaluated_params(state), state["model_state"]
        )
        try:
            tokens, lengths = left_pad([task.encode(prompt) for prompt in prompts])
            made = generate(
                model,
                tokens,
                lengths,
                stop_tokens=task.stop_tokens,
                key=jax.random.key(seed),
                **options,  # type: ignore[arg-type]
            )
            jax.block_until_ready(made)  # errors of the device come here
        except ValueError as error:
            raise UserError(str(error)) from error
        except jax.errors.JaxRuntimeError as error:
            if not re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
                raise
            raise UserError(
                f"no memory for {len(prompts)} prompts of up to {tokens.shape[1]} "
                f"tokens and {options['max_new_tokens']} new ones each: ask for less"
            ) from error
    return [
        task.decode(tokens[:length].tolist())
        for tokens, length in zip(made.tokens, made.lengths, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
