"""A bar on a terminal, lines elsewhere, nothing in the processes that do not print."""

import sys

from experiments.progress import Progress


def show(progress: Progress, step: int) -> None:
    assert progress.due(step)
    progress.show({"accuracy": 0.5, "loss": 1.25}, 64.0, 61.0)


def test_lines_where_there_is_no_terminal(capsys):
    progress = Progress(0, 10, 0.0, enabled=True)
    show(progress, 3)
    progress.close()
    line = "step 3/10 loss 1.2500 accuracy 0.5000, 64 examples/s, 01:01 left\n"
    assert capsys.readouterr().out == line


def test_a_line_waits_for_its_time(capsys):
    progress = Progress(0, 10, 1000.0, enabled=True)
    assert not progress.due(3)
    progress.close()


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("experiments.progress.REFRESH_SECONDS", 0.0)
    progress = Progress(2, 10, 1000.0, enabled=True)
    show(progress, 3)
    progress.say("a line")
    progress.due(10)
    progress.close()
    printed = capsys.readouterr()
    assert "3/10 loss 1.2500 accuracy 0.5000, 64 examples/s" in printed.err
    assert "100%" in printed.err and printed.out == "a line\n"


def test_silence_elsewhere(capsys):
    progress = Progress(0, 10, 0.0, enabled=False)
    assert not progress.due(3)
    progress.say("a line")
    progress.close()
    assert capsys.readouterr() == ("", "")
