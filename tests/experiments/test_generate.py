"""The command line that lets a trained run go on with a text."""

import pytest

from experiments import generate, main

SMALL = (
    "--config.task.length=16",
    "--config.model.d_model=8",
    "--config.model.n_layers=1",
    "--config.model.mixer.d_state=8",
    "--config.train.steps=2",
    "--config.train.batch_size=8",
    "--config.evaluate.every_steps=1",
    "--config.evaluate.batch_size=8",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text("to be or not to be\n" * 40)
    flags = ["--config=configs/lm/bytes.py:lru,tiny", f"--workdir={folder / 'run'}"]
    flags += [f"--config.data.path={folder / 'text.txt'}", "--distributed=off"]
    assert main.main(["main", *flags, *SMALL]) == 0
    return folder / "run"


def run(workdir, *flags):
    return generate.main(["generate", f"--workdir={workdir}", *flags])


def test_prompts_are_continued_the_same_from_the_same_seed(workdir, capsys):
    flags = ("--prompt=to", "--prompt=", "--max_new_tokens=20", "--temperature=2")
    assert run(workdir, *flags) == 0
    first = capsys.readouterr().out
    assert first.startswith("to")
    assert run(workdir, *flags) == 0
    assert capsys.readouterr().out == first
    assert run(workdir, *flags, "--seed=1") == 0
    assert capsys.readouterr().out != first


def test_what_cannot_go_on_is_said(workdir, tmp_path, capsys):
    assert run(tmp_path, "--prompt=a") == 1
    assert f"error: no run in {tmp_path}" in capsys.readouterr().err
    assert run(workdir, "--prompt=a", "--top_p=2") == 1
    assert "error: top_p=2.0, wanted 0 < top_p <= 1" in capsys.readouterr().err
