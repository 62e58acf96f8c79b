import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.data import pathfinder_generator
from experiments.data.pathfinder_generator import Drawing, generate
from experiments.data.pathfinder_pictures import draw
from experiments.errors import UserError

EASY = Drawing(32, 6)


@pytest.fixture
def in_this_process(monkeypatch):
    """Others take a second to start."""
    monkeypatch.setattr(
        pathfinder_generator, "in_processes", lambda work, chunks, _: map(work, chunks)
    )


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(pathfinder_generator, "_CHUNK", 10 * 32**2)


def files(folder):
    (pixels,), (labels,) = folder.glob("*.pixels"), folder.glob("*.labels")
    return pixels, labels


@pytest.mark.usefixtures("small_chunks")
def test_workers_draw_what_one_process_draws(tmp_path):
    rows = generate(EASY, 3, 45, tmp_path / "new", n_workers=2)
    assert rows.values.dtype == rows.labels.dtype == np.uint8
    assert rows.lengths.tolist() == [32**2] * 45
    for i in range(45):
        alone = draw(EASY, 3, i)
        assert np.array_equal(rows[i], alone.pixels.ravel())
        assert rows.labels[i] == alone.label


@pytest.mark.usefixtures("in_this_process", "small_chunks")
def test_what_is_on_disk_is_not_drawn_again(tmp_path):
    done = []
    first = generate(EASY, 0, 35, tmp_path, report=done.append)
    assert done == [0, 10, 20, 30, 35]
    expected = first.values.copy(), first.labels.copy()
    pixels, labels = files(tmp_path)
    # As if the process had been killed in chunk 1, between its pixels and its labels.
    with open(labels, "r+b") as file:
        file.seek(10)
        file.write(b"\xff" * 10)
    with open(pixels, "r+b") as file:
        file.write(b"\x07" * 100)
        file.seek(12 * 32**2)
        file.write(b"\x08" * 100)
    done.clear()
    again = generate(EASY, 0, 35, tmp_path, report=done.append)
    assert done == [25, 35]
    assert np.all(again.values[:100] == 7)
    assert np.array_equal(again.values[100:], expected[0][100:])
    assert np.array_equal(again.labels, expected[1])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("which", [0, 1])
def test_files_of_another_size_are_begun_again(tmp_path, which):
    expected = generate(EASY, 0, 8, tmp_path).values.copy()
    path = files(tmp_path)[which]
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(generate(EASY, 0, 8, tmp_path).values, expected)


@pytest.mark.usefixtures("in_this_process")
def test_other_settings_have_other_files(tmp_path):
    rows = [
        generate(Drawing(32, length), seed, n, tmp_path)
        for length, seed, n in [(6, 0, 5), (6, 1, 5), (5, 0, 5), (6, 0, 6)]
    ]
    assert len({row.values[: 5 * 32**2].tobytes() for row in rows}) == 3
    assert np.array_equal(rows[0].values, rows[3].values[: 5 * 32**2])


@pytest.mark.usefixtures("in_this_process")
def test_rows_are_on_disk_and_not_in_memory(tmp_path):
    rows = generate(EASY, 0, 5, tmp_path)
    for values in (rows.values, rows.part(1, 3).values, rows[2]):
        assert isinstance(values, np.memmap)
        assert not values.flags.writeable and not values.flags.owndata


@pytest.mark.usefixtures("in_this_process")
def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathfinder_generator, "_write", full)
    with pytest.raises(UserError, match=r"cannot write .*pixels \(No space left"):
        generate(EASY, 0, 5, tmp_path)


def test_workers_import_no_jax(subprocess_env):
    code = (
        "import sys, experiments.data.workers, experiments.data.pathfinder_generator; "
        "assert not {'jax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=subprocess_env, check=True)


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(tmp_path, subprocess_env):
    code = (
        "import sys; from pathlib import Path; "
        "from experiments.data.pathfinder_generator import Drawing, generate; "
        "generate(Drawing(32, 14), 0, 6_000, Path(sys.argv[1]), n_workers=2, "
        "report=lambda done: print(done, flush=True))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(
        command, env=subprocess_env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 300:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    time.sleep(1)  # its workers notice
    labels = np.fromfile(files(tmp_path)[1], np.uint8)
    drawn = np.flatnonzero(labels != 255)
    assert 300 < len(drawn) < 6_000
    done = []
    rows = generate(
        Drawing(32, 14), 0, 6_000, tmp_path, n_workers=2, report=done.append
    )
    assert done[0] == len(drawn)
    assert np.array_equal(rows.labels[drawn], labels[drawn])
    for i in [*drawn[::100], *range(0, 6_000, 100)]:
        assert np.array_equal(rows[i], draw(Drawing(32, 14), 0, i).pixels.ravel())
