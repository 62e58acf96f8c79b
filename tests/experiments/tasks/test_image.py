import jax.numpy as jnp
import numpy as np
import pytest

from experiments import main
from experiments.data import builders, cifar, images
from experiments.errors import UserError
from experiments.tasks.image import ColourImage, Image
from tests.conftest import ROOT
from tests.experiments.data import fabricated_cifar as fabricated

SPLITS = ("train", "validation", "test")
MADE = fabricated.batches()
ORIGINAL = fabricated.by_split(MADE)


def make(cache_dir, kind=Image, method=None, **changes):
    arguments = {
        "split": "permuted",
        "train_size": 16,
        "validation_size": 4,
        "test_size": 4,
        "cache_dir": str(cache_dir / "cache"),
        "source": str(cache_dir / "cifar"),
    }
    return (method or kind)(**arguments | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    fabricated.write_folder(folder / "cifar", fabricated.pickles(MADE))
    return folder


def all_of(task, split):
    return task.batch(split, np.arange(task.size(split)))


@pytest.mark.parametrize("kind", [Image, ColourImage])
def test_images_come_pixel_by_pixel(kind, folder):
    task = make(folder, kind, split="tail")
    pixels, labels = ORIGINAL["train"]
    if kind is Image:
        pixels = images.grey(pixels)
    pixels = pixels.reshape(20, 1_024, len(kind.mean))
    for split, rows in (("train", slice(0, 16)), ("validation", slice(16, 20))):
        batch = all_of(task, split)
        assert batch["pixels"].dtype == np.uint8
        assert np.array_equal(batch["pixels"], pixels[rows])
        assert np.array_equal(batch["label"], labels[rows])
        assert batch["weight"].tolist() == [1] * len(labels[rows])
    assert np.array_equal(all_of(task, "test")["label"], ORIGINAL["test"][1])
    assert task.model_kwargs == {"d_input": len(kind.mean), "n_classes": 10}
    assert task.name == ("image" if kind is Image else "image_colour")
    assert task.provenance == "stand-in"  # with so few of them
    majority = np.bincount(ORIGINAL["test"][1]).max() / 4
    assert task.reference_points == {
        "chance": 0.1,
        "majority class": majority,
        "chance loss": np.log(10),
    }


def test_the_permuted_split(folder):
    task = make(folder)
    together = [all_of(task, split)["pixels"] for split in ("train", "validation")]
    assert [len(part) for part in together] == [16, 4]
    found = {image.tobytes() for image in np.concatenate(together)}
    assert found == {image.tobytes() for image in images.grey(ORIGINAL["train"][0])}
    tail = make(folder, split="tail")
    assert task.checksum == make(folder).checksum != tail.checksum
    assert len(list((folder / "cache" / "image").iterdir())) == 1


def test_training_batches_are_pure(folder):
    batch = make(folder).train_batch(3, 10, 8)
    again = make(folder).train_batch(3, 10, 8)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)


@pytest.mark.parametrize("kind", [Image, ColourImage])
def test_the_model_reads_normal_pixels(kind, folder):
    read = {}

    def model(x, *, key, train):
        read["x"] = np.asarray(x)
        return 50.0 * jnp.eye(10)[np.arange(len(x)) % 10]

    task = make(folder, kind)
    batch = all_of(task, "train")
    batch["weight"][10:] = 0
    _, weight, sums = task.loss(model, batch)
    channels = [
        (batch["pixels"][..., i] / 255 - kind.mean[i]) / kind.deviation[i]
        for i in range(len(kind.mean))
    ]
    assert read["x"].dtype == np.float32
    np.testing.assert_allclose(read["x"], np.stack(channels, -1), rtol=1e-5, atol=1e-5)
    assert weight == 10
    assert sums["accuracy"][0] == np.sum(batch["label"][:10] == np.arange(10))


def test_the_manifest(folder):
    task = make(folder)
    (prepared,) = (folder / "cache" / "image").iterdir()
    facts = builders.manifest(prepared)
    assert facts["provenance"] == task.provenance and facts["form"] == "pickles"
    assert facts["source"] == str(folder / "cifar")
    assert facts["rows"] == {"train": 20, "test": 4}
    assert facts["bytes"] == {"train": 20 * 1_024, "test": 4 * 1_024}


def test_official_sizes_are_official(folder, monkeypatch):
    monkeypatch.setattr(cifar, "SIZES", {"train": 20, "test": 4})
    monkeypatch.setattr(cifar, "_check", lambda *args: None)
    assert make(folder).provenance == "official archive"


def test_other_sizes_are_refused(folder):
    with pytest.raises(UserError, match=r"20 train images, .* validation_size is 50,0"):
        make(folder, train_size=45_000, validation_size=5_000)
    with pytest.raises(UserError, match="4 test images, task.test_size is 5"):
        make(folder, test_size=5)


@pytest.mark.parametrize("source", ["", "stand-in"])
def test_without_files_one_line_says_which(source, tmp_path):
    with pytest.raises(UserError) as error:
        make(tmp_path, method=Image.prepare, source=source)
    message = str(error.value)
    assert "\n" not in message and not list(tmp_path.iterdir())
    for word in (
        "cifar-10-python.tar.gz",
        "50,000 images to train on, 10,000 to test on",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "--config.data.source=PATH",
        "configs/lra/image.py:FAMILY,tiny",
    ):
        assert word in message


def test_prepare_without_files_ends_with_exit_code_1(tmp_path, capsys):
    flags = {
        "config": f"{ROOT}/configs/lra/image.py:lru",
        "workdir": tmp_path / "run",
        "config.data.cache_dir": tmp_path / "cache",
        "mode": "prepare",
        "distributed": "off",
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    assert main.main(["main", *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: image reads CIFAR-10")
    assert message.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"split": "heldout"}, "split must be permuted or tail"),
        ({"test_size": 0}, "every split needs rows"),
        ({"validation_size": 0}, "every split needs rows"),
    ],
)
def test_wrong_arguments(wrong, reason, folder):
    with pytest.raises(ValueError, match=reason):
        make(folder, **wrong)
