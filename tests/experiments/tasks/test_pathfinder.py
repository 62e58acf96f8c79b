import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import (
    builders,
    pathfinder_archive,
    pathfinder_generator,
    pathfinder_pictures,
)
from experiments.data.pathfinder_generator import Drawing
from experiments.data.rows import Rows
from experiments.errors import UserError
from experiments.tasks.pathfinder import Pathfinder, PathX
from tests.experiments.data import fabricated_pathfinder as fabricated

SPLITS = ("train", "validation", "test")


def make(cache_dir, kind=Pathfinder, **changes):
    arguments = {
        "resolution": 32,
        "contour_length": 6,
        "n_images": 30,
        "data_seed": 0,
        "split": "permuted",
        "cache_dir": str(cache_dir),
        "source": "",
    }
    return kind(**arguments | changes)


@pytest.fixture
def drawn(monkeypatch):
    """Random pixels in place of drawings, and what was asked for."""
    asked = []

    def generate(drawing, seed, n_images, folder, *, report):
        asked.append((drawing, seed, n_images))
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        np.save(
            folder / "pixels.npy",
            rng.integers(0, 256, (n_images, drawing.resolution**2), np.uint8),
        )
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        report(n_images)
        return Rows.table(pixels, rng.integers(0, 2, n_images).astype(np.uint8))

    monkeypatch.setattr(pathfinder_generator, "generate", generate)
    return asked


@pytest.mark.slow
def test_the_generator_is_asked_as_it_wants_to_be(tmp_path):
    task = make(tmp_path, n_images=10, split="tail")
    assert [task.size(split) for split in SPLITS] == [8, 1, 1]
    picture = pathfinder_pictures.draw(Drawing(32, 6), 0, 9)
    batch = all_of(task, "test")
    assert np.array_equal(batch["pixels"][0, :, 0], picture.pixels.ravel())
    assert batch["label"] == [picture.label]


def all_of(task, split):
    return task.batch(split, np.arange(task.size(split)))


def test_drawn_images(drawn, tmp_path):
    task = make(tmp_path)
    assert (drawn[0][0].resolution, drawn[0][0].contour_length) == (32, 6)
    assert drawn[0][1:] == (0, 30)
    assert [task.size(split) for split in SPLITS] == [24, 3, 3]
    batches = [all_of(task, split) for split in SPLITS]
    pixels = np.concatenate([batch["pixels"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    rng = np.random.default_rng(0)
    expected = rng.integers(0, 256, (30, 1_024, 1), np.uint8)
    order = np.random.Generator(np.random.PCG64(42)).permutation(30)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected[order])
    assert np.array_equal(labels, rng.integers(0, 2, 30)[order])
    assert (task.name, task.provenance) == ("pathfinder32_gen", "stand-in")
    assert task.model_kwargs == {"d_input": 1, "n_classes": 2}
    test = batches[2]["label"].mean()
    assert task.reference_points == {
        "chance": 0.5,
        "majority class": max(test, 1 - test),
        "chance loss": np.log(2),
    }


def test_the_scratch_is_removed_and_the_manifest_written(drawn, tmp_path):
    make(tmp_path, contour_length=9, data_seed=3)
    assert not list((tmp_path / "pathfinder_scratch").iterdir())
    (prepared,) = (tmp_path / "pathfinder32_gen").iterdir()
    facts = builders.manifest(prepared)
    expected = {
        "task": "pathfinder32_gen",
        "provenance": "stand-in",
        "difficulty": "intermediate",
        "contour_length": 9,
        "resolution": 32,
        "n_images": 30,
        "data_seed": 3,
        "rows": {"images": 30},
        "bytes": {"images": 30 * 1_024},
    }
    assert expected.items() <= facts.items()
    make(tmp_path, contour_length=9, data_seed=3, split="tail")
    assert len(drawn) == 1, "it was drawn again for another split"


def test_splits_do_not_depend_on_the_seed_of_a_run(drawn, tmp_path):
    task = make(tmp_path)
    again = make(tmp_path)
    assert task.checksum == again.checksum
    sums = {task.checksum}
    sums |= {make(tmp_path, **change).checksum for change in CHANGES}
    assert len(sums) == 1 + len(CHANGES)
    batch, other = task.train_batch(1, 5, 8), again.train_batch(1, 5, 8)
    assert np.array_equal(batch["pixels"], other["pixels"])
    tail = make(tmp_path, split="tail")
    rows = np.random.default_rng(0).integers(0, 256, (30, 1_024, 1), np.uint8)
    assert np.array_equal(all_of(tail, "test")["pixels"], rows[27:])
    assert np.array_equal(all_of(tail, "validation")["pixels"], rows[24:27])


CHANGES = [{"split": "tail"}, {"data_seed": 1}, {"n_images": 31}, {"resolution": 64}]


def test_the_model_reads_pixels_from_minus_one_to_one(drawn, tmp_path):
    read = {}

    def model(x, *, key, train):
        read["x"] = np.asarray(x)
        return 50.0 * jnp.eye(2)[np.arange(len(x)) % 2]

    task = make(tmp_path)
    batch = all_of(task, "train")
    batch["weight"][10:] = 0
    _, weight, sums = task.loss(model, batch)
    expected = batch["pixels"] / 127.5 - 1
    np.testing.assert_allclose(read["x"], expected, rtol=1e-5, atol=1e-6)
    assert read["x"].shape == (24, 1_024, 1) and read["x"].dtype == np.float32
    assert read["x"].min() == -1 and read["x"].max() == 1
    assert weight == 10
    assert sums["accuracy"][0] == np.sum(batch["label"][:10] == np.arange(10) % 2)


OFFICIAL = {"contour_length": 14, "n_images": 200_000}


@pytest.mark.parametrize(
    ("kind", "changes", "name", "provenance"),
    [
        (Pathfinder, OFFICIAL, "pathfinder", "regenerated"),
        (PathX, OFFICIAL | {"resolution": 128}, "pathx", "regenerated"),
        (Pathfinder, OFFICIAL | {"contour_length": 9}, "pathfinder32_gen", "stand-in"),
        (Pathfinder, OFFICIAL | {"n_images": 100}, "pathfinder32_gen", "stand-in"),
        (Pathfinder, OFFICIAL | {"resolution": 64}, "pathfinder64_gen", "stand-in"),
        (PathX, OFFICIAL | {"resolution": 64}, "pathfinder64_gen", "stand-in"),
        (
            PathX,
            {"resolution": 128, "contour_length": 14},
            "pathfinder128_gen",
            "stand-in",
        ),
    ],
)
def test_only_the_official_settings_are_regenerated(
    kind, changes, name, provenance, monkeypatch, tmp_path
):
    def prepare(folder, make, about):
        assert folder.parent == tmp_path / name
        assert about["provenance"] == provenance and about["task"] == name
        raise UserError("far enough")

    monkeypatch.setattr(builders, "prepare", prepare)
    task = kind.__new__(kind)
    with pytest.raises(UserError, match="far enough"):
        make(tmp_path, task.__init__, **changes)
    assert (task.name, task.provenance) == (name, provenance)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pathfinder_archive,
        "in_processes",
        lambda function, inputs, _: map(function, inputs),
    )
    files = fabricated.files(64)
    files[f"pathfinder64/{fabricated.HARD}/imgs/2/sample_1.png"] = b""
    name = tmp_path / "lra_release" / "lra_release.gz"
    return fabricated.write_archive(name, {f"lra_release/{k}": files[k] for k in files})


def test_the_archive(archive, tmp_path):
    changes = {"resolution": 64, "contour_length": 14, "n_images": 12, "split": "tail"}
    for kind in (Pathfinder, PathX):
        task = make(tmp_path, kind, source=str(archive.parent), **changes)
        found = np.concatenate([all_of(task, split)["pixels"] for split in SPLITS])
        labels = np.concatenate([all_of(task, split)["label"] for split in SPLITS])
        pixels, expected = fabricated.pixels(64)
        kept = [i for i in range(12) if i != 5]
        assert np.array_equal(found[..., 0], pixels[kept])
        assert np.array_equal(labels, expected[kept])
        assert [task.size(split) for split in SPLITS] == [9, 1, 1]
        assert (task.name, task.provenance) == ("pathfinder64_hard", "stand-in")
    (prepared,) = (tmp_path / "pathfinder64_hard").iterdir()
    facts = builders.manifest(prepared)
    assert facts["source"] == str(archive.parent)
    assert (facts["empty_files_left_out"], facts["difficulty"]) == (1, "hard")
    assert not list((tmp_path / "pathfinder_scratch").iterdir())
    with pytest.raises(UserError, match=r"11 images, task.n_images is 200,000: .*=11"):
        make(tmp_path, source=str(archive), **changes | {"n_images": 200_000})


def test_a_damaged_archive_leaves_nothing_behind(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-5_000])
    with pytest.raises(UserError, match="cannot be read to its end"):
        make(tmp_path, source=str(archive), resolution=64, contour_length=14)
    assert not list((tmp_path / "pathfinder_scratch").iterdir())
    assert not list(tmp_path.rglob("manifest.json"))


def test_files_of_the_official_settings_are_official(archive, tmp_path, monkeypatch):
    def load(origin, cache_dir, measure):
        assert (origin.name, origin.provenance) == ("pathfinder", "official archive")
        raise UserError("far enough")

    monkeypatch.setattr("experiments.tasks.origin.Origin.load", load)
    with pytest.raises(UserError, match="far enough"):
        make(tmp_path, source=str(archive), **OFFICIAL)


@pytest.mark.parametrize(
    ("kind", "wrong", "reason"),
    [
        (Pathfinder, {"resolution": 128}, "resolution must be 32 or 64, got 128"),
        (PathX, {}, "resolution must be 128 or 64, got 32"),
        (Pathfinder, {"contour_length": 5}, "must be 14, 9 or 6, got 5"),
        (Pathfinder, {"n_images": 9}, "every split needs rows"),
        (Pathfinder, {"data_seed": -1}, "data_seed must be from 0"),
        (Pathfinder, {"split": "heldout"}, "split must be permuted or tail"),
    ],
)
def test_wrong_arguments(kind, wrong, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        make(tmp_path, kind, **wrong)


def test_a_source_without_images_is_one_line(tmp_path):
    with pytest.raises(UserError, match="leave data.source empty; with FAMILY,tiny"):
        make(tmp_path, source="stand-in")
    with pytest.raises(UserError, match="holds no folder pathfinder32") as error:
        make(tmp_path, source=str(tmp_path / "nowhere"))
    assert "leave data.source empty to draw" in str(error.value)
    assert not list(tmp_path.iterdir())
