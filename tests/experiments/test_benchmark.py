"""The benchmark times the loop that training uses."""

import pytest

from experiments import benchmark, config
from experiments.errors import UserError
from tests.experiments.conftest import CONFIG


@pytest.mark.usefixtures("fakes")
def test_the_benchmark_measures_and_describes(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 0.01)
    command = config.parse(["main", f"--config={CONFIG}", "--mode=benchmark"])
    result = benchmark.benchmark(command.config)
    assert result["overhead_ms"] == result["loop_ms"] - result["bare_ms"]
    assert 0 < result["bare_ms"] and 0 < result["compile_seconds"]
    assert result["times_faster"] == result["beside_ms"] / result["bare_ms"]
    assert "ms    the difference" in benchmark.describe(result)


@pytest.mark.usefixtures("fakes")
def test_a_wrong_step_is_not_timed(monkeypatch):
    right = benchmark.build

    def wrong_if_named(config, **options):
        if config.model.implementation:
            config.seed += 1  # other parameters
        return right(config, **options)

    monkeypatch.setattr(benchmark, "build", wrong_if_named)
    command = config.parse(["main", f"--config={CONFIG}", "--mode=benchmark"])
    with pytest.raises(UserError, match="loss of the first step .* neither is timed"):
        benchmark.benchmark(command.config)
