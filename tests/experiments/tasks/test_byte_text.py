"""Windows hold every byte once, documents stay whole, unreadable text is named."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.lm import bytes as lm_bytes
from experiments import builders
from experiments.data import text
from experiments.tasks.byte_text import START, ByteText
from tests.pairwise import mostly_slow
from tests.ssm import law


def task(path, **changed):
    arguments = {"length": 8, "separate_documents": True, "cache_dir": "", "source": ""}
    return ByteText(path=str(path), **(arguments | changed))


@pytest.fixture
def folder(tmp_path):
    """Forty documents of 0 to 39 bytes, a hidden file and a folder in the folder."""
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".hidden").write_bytes(b"\xff")
    for index in range(40):
        name = f"deeper/{index}.txt" if index % 2 else f"{index}.txt"
        (tmp_path / name).write_text(chr(97 + index % 26) * index)
    return tmp_path


def counted(of, split):
    """The bytes that a whole pass over a split is scored on, in order."""
    batch = of.batch(split, np.arange(of.size(split)))
    return batch["targets"][batch["targets"] >= 0]


def test_every_byte_is_a_target_once(folder):
    of = task(folder)
    documents = text.read_documents(str(folder))
    assert len(documents) == 39
    assert {document.split() for document in documents} == {
        "train",
        "validation",
        "test",
    }
    total = 0
    for split in ("train", "validation", "test"):
        wanted = b"".join(d.content for d in documents if d.split() == split)
        assert bytes(counted(of, split).astype(np.uint8)) == wanted
        total += len(wanted)
    assert total == sum(range(40))


def test_inputs_are_the_targets_one_step_late_and_starts_are_no_targets(folder):
    batch = task(folder).batch("train", np.arange(3))
    inputs, targets = batch["inputs"].ravel(), batch["targets"].ravel()
    assert inputs[0] == START
    shown = targets >= 0
    assert (inputs[1:][shown[:-1]] == targets[:-1][shown[:-1]]).all()
    assert (inputs[1:][~shown[:-1]] == START).all()


def test_one_file_is_cut_in_three(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("".join(chr(32 + i % 90) for i in range(1000)))
    of = task(file)
    assert [len(counted(of, split)) for split in ("train", "validation", "test")] == [
        900,
        50,
        50,
    ]


def test_the_standard_library_is_everywhere():
    of = task("", length=2048)
    assert of.provenance == "standard library"
    assert of.size("train") > 1000 and of.size("test") > 20
    assert 4 < of.reference_points["frequencies"] < 5.5
    assert task("", length=2048).checksum == of.checksum


def test_the_loss_is_that_of_the_bytes_alone(folder):
    of = task(folder)
    seen = {}

    def uniform(tokens, *, reset, key, train):
        seen["reset"] = reset
        return jnp.zeros((*tokens.shape, 257)), None

    batch = of.batch("test", np.arange(of.size("test")))
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    loss, weight, sums = of.loss(uniform, batch)
    assert weight == len(counted(of, "test"))
    assert loss / weight == pytest.approx(math.log(257), rel=1e-6)
    bits, of_bits = sums["bits_per_byte"]
    assert bits / of_bits == pytest.approx(math.log2(257), rel=1e-6)
    assert (seen["reset"] == (batch["inputs"] == START)).all()
    task(folder, separate_documents=False).loss(uniform, batch)
    assert seen["reset"] is None
    halved = batch | {"weight": batch["weight"].at[0].set(0.0)}
    first = int((batch["targets"][0] >= 0).sum())
    assert of.loss(uniform, halved)[1] == weight - first


APART = [(family, separate) for family in lm_bytes.MODELS for separate in (True, False)]


@pytest.mark.parametrize(
    "case",
    mostly_slow(APART, ("griffin", True), ("griffin", False), ("transformer", True)),
)
def test_documents_apart_have_no_gradient_between_them(case, tmp_path):
    family, separate = case
    """Of the loss of one in the embedding of the only byte of the one before."""
    for name in range(40):  # enough to have some in every split
        (tmp_path / f"{name}.txt").write_text("ab" * 30)
    config = lm_bytes.get_config(f"{family},tiny")
    config.model.update(d_model=16, tied=False)
    config.data.path, config.task.length = str(tmp_path), 19
    config.task.separate_documents = separate
    of = builders.build_task(config)
    create = builders.build_model(config, of)
    inputs = np.array([[START, *b"aaaaaaaaa", START, *b"bbbbbbbb"]])
    targets = np.array([[-1] * 10 + [*b"bbbbbbbbb"]])
    batch = {"inputs": inputs, "targets": targets, "weight": np.ones(1, np.float32)}

    def gradient(key):
        graphdef, params, rest = nnx.split(create(key), nnx.Param, ...)

        def loss(params):
            model = nnx.merge(graphdef, params, rest)
            return of.loss(model, jax.tree.map(jnp.asarray, batch))

        total = jax.grad(lambda params: loss(params)[0])(params)
        return jnp.abs(total["encoder"]["embedding"][...]).max(axis=-1)

    run = jax.jit(gradient, compiler_options=law.QUICK_COMPILE)
    largest = run(jax.random.key(0))
    assert largest[ord("b")] > 0
    assert (largest[ord("a")] == 0) == separate


def test_fewer_bits_are_better(folder):
    of = task(folder)
    assert of.is_better({"bits_per_byte": 1.0}, {"bits_per_byte": 2.0})
    assert not of.is_better({"bits_per_byte": 2.0}, {"bits_per_byte": 2.0})


def test_unreadable_text_is_named(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="nowhere' is neither a file nor a folder"):
        task("/nowhere")
    with pytest.raises(ValueError, match="holds no text"):
        task(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="split of .* fewer than length=4096"):
        task(folder, length=4096)
    with pytest.raises(ValueError, match="length=1, wanted at least 2"):
        task(folder, length=1)
    with pytest.raises(ValueError, match=r"the prompt 'a\\udce9' is not UTF-8 .* 1"):
        task(folder).encode("a\udce9")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        ValueError, match=r"latin.txt is not UTF-8 text: byte 3 is 0xe9"
    ):
        task(folder)
