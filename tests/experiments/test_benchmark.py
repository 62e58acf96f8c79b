"""The benchmark times the loop that training uses."""

import pytest

from experiments import benchmark, config
from tests.experiments.conftest import CONFIG


@pytest.mark.usefixtures("fakes")
def test_the_benchmark_measures_and_describes(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 0.01)
    command = config.parse(["main", f"--config={CONFIG}", "--mode=benchmark"])
    result = benchmark.benchmark(command.config)
    assert result["overhead_ms"] == result["loop_ms"] - result["bare_ms"]
    assert 0 < result["bare_ms"] and 0 < result["compile_seconds"]
    assert "ms    the difference" in benchmark.describe(result)
