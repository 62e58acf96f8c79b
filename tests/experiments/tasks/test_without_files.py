"""`--mode=prepare` for a task whose files are not there."""

import pytest

from experiments import main
from tests.experiments.conftest import ROOT

WANTED = {
    "text": ("25,000", "aclImdb_v1.tar.gz", "train-*.parquet", "train.jsonl"),
    "retrieval": (
        "new_aan_pairs.eval.tsv",
        "147,086, 18,090 and 17,437 rows of label, id1, id2, text1, text2",
        "lra_release.gz",
    ),
}


@pytest.mark.parametrize("task", WANTED)
@pytest.mark.parametrize("source", ["", "nowhere"])
def test_one_line_says_what_is_wanted(task, source, tmp_path, capsys):
    cache_dir, workdir = tmp_path / "cache", tmp_path / "work"
    flags = (
        f"--config={ROOT}/configs/lra/{task}.py:lru",
        f"--workdir={workdir}",
        f"--config.data.cache_dir={cache_dir}",
        f"--config.data.source={source and tmp_path / source}",
        "--mode=prepare",
        "--distributed=off",
    )
    assert main.main(["main", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    where = tmp_path / source if source else "--config.data.source=stand-in"
    for words in (*WANTED[task], str(where)):
        assert words in error
    assert not list(tmp_path.iterdir())
