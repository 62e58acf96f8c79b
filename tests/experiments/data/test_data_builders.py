import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from experiments.data import builders
from experiments.data.rows import Rows
from experiments.errors import UserError

ABOUT = {"provenance": "stand-in", "grammar": {"depth": 3}}


def make_splits(n_rows=200):
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "validation", "test"):
        rows = [rng.integers(0, 255, n).astype(np.uint8) for n in range(1, n_rows + 1)]
        splits[split] = Rows.of(rows, rng.integers(0, 10, n_rows).astype(np.uint8))
    return splits


@pytest.fixture
def prepared(tmp_path):
    builders.prepare(tmp_path / "rows", make_splits, ABOUT)
    return tmp_path / "rows"


def file_of(folder, split):
    (path,) = folder.rglob(f"*-{split}.array_record*")
    return path


def test_what_is_saved_is_loaded(prepared):
    found = builders.load(prepared)
    for split, rows in make_splits().items():
        for name in ("values", "starts", "labels"):
            assert np.array_equal(getattr(found[split], name), getattr(rows, name))
    assert builders.checksum(found) == builders.checksum(make_splits())


def test_the_manifest_says_what_the_rows_are(prepared):
    assert builders.manifest(prepared) == ABOUT | {
        "sha256": builders.checksum(make_splits()),
        "rows": {"train": 200, "validation": 200, "test": 200},
        "bytes": {"train": 20_100, "validation": 20_100, "test": 20_100},
    }


def test_prepared_rows_are_not_made_again(prepared):
    builders.prepare(prepared, lambda: pytest.fail("made again"), {})


def test_the_checksum_sees_everything():
    sums = {builders.checksum(make_splits())}
    for split in ("train", "test"):
        for field in ("values", "labels"):
            splits = make_splits()
            getattr(splits[split], field)[-1] ^= 1
            sums.add(builders.checksum(splits))
    assert len(sums) == 5


def truncate(path):
    os.truncate(path, path.stat().st_size - 65_536)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[1_000] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip, os.remove])
def test_a_damaged_file_is_named(damage, prepared):
    path = file_of(prepared, "validation")
    damage(path)
    with pytest.raises(builders.DamagedError) as error:
        builders.load(prepared)
    message = str(error.value)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("the same command with --mode=prepare makes it again")
    assert "\n" not in message
    builders.remove(prepared)
    builders.prepare(prepared, make_splits, {})
    builders.load(prepared)


def test_damaged_facts_are_named(prepared):
    (path,) = prepared.rglob("dataset_info.json")
    path.write_text(path.read_text()[:50])
    with pytest.raises(builders.DamagedError, match="2.0.0 is damaged"):
        builders.load(prepared)
    path = prepared / "manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(builders.DamagedError, match="manifest.json is damaged"):
        builders.load(prepared)


def test_another_files_rows_are_noticed(prepared):
    file_of(prepared, "train").write_bytes(file_of(prepared, "test").read_bytes())
    with pytest.raises(builders.DamagedError, match="checksum"):
        builders.load(prepared)


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--config.data.cache_dir"):
        builders.prepare(tmp_path / "file" / "rows", make_splits, {})


def start(folder, code, env):
    """Run code that may use `folder` and `make_splits` in another process."""
    program = f"""
        import time
        from pathlib import Path
        from experiments.data import builders
        from tests.experiments.data.test_data_builders import make_splits
        folder = Path({str(folder)!r})
    """
    program = textwrap.dedent(program) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_preparation_leaves_nothing_behind(tmp_path, subprocess_env):
    folder = tmp_path / "rows"
    code = """
        def stop_midway(what, total):
            def report(done):
                if what == "writing test":
                    (folder / "midway").touch()
                    time.sleep(60)
            return report
        builders.counter = stop_midway
        builders.prepare(folder, make_splits, {})
    """
    with start(folder, code, subprocess_env) as process:
        while not (folder / "midway").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert list(folder.rglob("*-test.array_record*")), "it was not midway"
    assert not builders.is_prepared(folder)
    builders.prepare(folder, make_splits, {})
    builders.load(folder)


def test_a_full_disk_is_one_line(tmp_path, subprocess_env):
    folder = tmp_path / "rows"
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            builders.prepare(folder, make_splits, {})
        except builders.UserError as error:
            print(error)
    """
    with start(folder, code, subprocess_env) as process:
        output, _ = process.communicate()
    assert output.startswith(f"cannot prepare {folder} (")
    assert output.count("\n") == 1 and output.endswith("--config.data.cache_dir\n")
    assert not builders.is_prepared(folder)


PEAK = """
    (line,) = [line for line in open("/proc/self/status") if "VmHWM" in line]
    print(int(line.split()[1]) // 1_024)  # MiB; getrusage counts the parent's
"""


@pytest.mark.slow
def test_a_big_set_is_in_memory_once(tmp_path, subprocess_env):
    folder, n_rows, width = tmp_path / "rows", 36_000, 128**2  # 562 MB
    pixels = np.lib.format.open_memmap(
        tmp_path / "pixels.npy", "w+", np.uint8, (n_rows, width)
    )
    pixels[:, ::7] = 200
    del pixels
    prepare = f"""
        import numpy as np
        from experiments.data.rows import Rows
        def make():
            pixels = np.load({str(tmp_path / "pixels.npy")!r}, mmap_mode="r")
            return {{"images": Rows.table(pixels, np.zeros(len(pixels), np.uint8))}}
        builders.prepare(folder, make, {{}})
    """
    for code in (prepare, "builders.load(folder)"):
        code = textwrap.dedent(code) + textwrap.dedent(PEAK)
        with start(folder, code, subprocess_env) as process:
            output, _ = process.communicate()
        assert int(output) < n_rows * width / 2**20 + 300


def test_of_several_processes_one_prepares(tmp_path, subprocess_env):
    code = """
        def make():
            print("made", flush=True)
            time.sleep(1)
            return make_splits()
        builders.prepare(folder, make, {})
        builders.load(folder)
    """
    processes = [start(tmp_path / "rows", code, subprocess_env) for _ in range(2)]
    output = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output) == ["", "made\n"]


def test_rows_of_an_older_form_are_made_again(prepared, monkeypatch):
    monkeypatch.setattr(builders, "_VERSION", "99.0.0")
    builders.prepare(prepared, make_splits, {})
    builders.load(prepared)
    assert [path.name for path in (prepared / "rows").iterdir()] == ["99.0.0"]
