"""The command line that lets a trained run go on with a text."""

import functools

import pytest

from experiments import generate, main

SMALL = (
    "--config.task.length=16",
    "--config.model.d_model=8",
    "--config.model.n_layers=1",
    "--config.train.steps=2",
    "--config.train.batch_size=8",
    "--config.evaluate.every_steps=2",
    "--config.evaluate.batch_size=8",
)
OF_FAMILY = {
    "lru": ("--config.model.mixer.d_state=8",),
    "hawk": ("--config.model.mixer.lru_width=8",),
    # Three layers have an attention, whose window is shorter than the texts here.
    "griffin": (
        "--config.model.mixer.lru_width=8",
        "--config.model.n_layers=3",
        "--config.model.mixer.n_heads=2",
        "--config.model.mixer.window=5",
    ),
    "transformer": (
        "--config.model.mixer.n_heads=2",
        "--config.model.mixer.n_kv_heads=2",
    ),
    "hgrn": (),
    "hgrn2": (),
    "transnormer": (),
    # Of two layers the second has softmax attention.
    "minimax": (
        "--config.model.mixer.head_dim=4",
        "--config.model.n_layers=2",
        "--config.model.mixer.every=2",
    ),
}
QUICK = ("transformer",)
FAMILIES = [
    pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
    for family in OF_FAMILY
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that makes a run of two steps of a family, once."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text("to be or not to be\n" * 40)

    @functools.cache
    def train(family):
        workdir = folder / family
        flags = [f"--config=configs/lm/bytes.py:{family},tiny", f"--workdir={workdir}"]
        flags += [f"--config.data.path={folder / 'text.txt'}", "--distributed=off"]
        assert main.main(["main", *flags, *SMALL, *OF_FAMILY[family]]) == 0
        return workdir

    return train


def run(workdir, *flags):
    return generate.main(["generate", f"--workdir={workdir}", *flags])


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_continued_the_same_from_the_same_seed(trained, family, capsys):
    """Prompts may be empty, and longer than the windows of training."""
    workdir, long = trained(family), "to be or not to be, that is the question"
    flags = ["--prompt=to", "--prompt=", f"--prompt={long}"]
    flags += ["--max_new_tokens=20", "--temperature=2"]
    capsys.readouterr()
    assert run(workdir, *flags) == 0
    first = capsys.readouterr().out
    assert first.startswith("to") and f"\n\n{long}" in first
    assert run(workdir, *flags) == 0
    assert capsys.readouterr().out == first
    assert run(workdir, *flags, "--seed=1") == 0
    assert capsys.readouterr().out != first


def refusal(capsys, *arguments):
    """The one line that ends a command which cannot go on."""
    capsys.readouterr()
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_go_on_is_said(trained, tmp_path, capsys):
    workdir, file = trained("lru"), tmp_path / "file"
    assert f"error: no run in {tmp_path}: name" in refusal(
        capsys, tmp_path, "--prompt="
    )
    missing = tmp_path / "missing"
    assert f"error: no run in {missing}: name" in refusal(capsys, missing, "--prompt=")
    file.touch()
    assert f"error: no run in {file}: name" in refusal(capsys, file, "--prompt=")
    assert "error: top_p=2.0, wanted 0 < top_p <= 1" in refusal(
        capsys, workdir, "--prompt=a", "--top_p=2"
    )
    assert r"error: the prompt 'caf\udce9' is not UTF-8 text at its character 3" in (
        refusal(capsys, workdir, "--prompt=caf\udce9")  # as the shell hands it on
    )


def test_a_cache_that_does_not_fit_is_said(trained, capsys):
    """The cache of attention has room for all that is asked for, terabytes here."""
    flags = ["--prompt=a"] * 200 + ["--max_new_tokens=2000000000"]
    error = refusal(capsys, trained("transformer"), *flags)
    assert "no memory for 200 prompts of up to 2 tokens and 2000000000 new" in error


def test_text_that_went_missing_is_said(trained, capsys):
    workdir = trained("lru")
    text = workdir.parent / "text.txt"
    kept = text.read_bytes()
    text.unlink()
    try:
        error = refusal(capsys, workdir, "--prompt=a")
    finally:
        text.write_bytes(kept)
    assert f"path='{text}' is neither a file nor a folder" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither a file nor a folder"),
        (b"", "holds no text"),
        (b"caf\xe9", "is not UTF-8 text: byte 3 is 0xe9; convert it or take it out"),
        (b"short", "has fewer than length=512 bytes: give it more text"),
    ],
)
def test_text_that_cannot_be_trained_on_is_said(content, message, tmp_path, capsys):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    flags = ["--config=configs/lm/bytes.py:griffin,tiny", f"--workdir={tmp_path}/run"]
    flags += [f"--config.data.path={path}", "--distributed=off"]
    assert main.main(["main", *flags]) == 1
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
