import functools
import operator
import subprocess
import sys

import pytest

from experiments.data.workers import in_processes
from experiments.errors import UserError

double = functools.partial(operator.mul, 2)


@pytest.mark.parametrize("n_workers", [1, 2, 7])
def test_results_come_in_the_order_of_the_inputs(n_workers):
    assert list(in_processes(double, range(5), n_workers)) == [0, 2, 4, 6, 8]


def test_no_inputs_make_no_results():
    assert list(in_processes(double, [])) == []


def test_what_a_function_raises_is_raised():
    results = in_processes(int, ["1", "2", "three"], n_workers=2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="invalid literal .*'three'"):
        next(results)


def test_a_dead_worker_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="a process that prepares data was killed"):
        list(in_processes(double, range(5), n_workers=2))


def test_workers_import_no_jax(subprocess_env):
    code = (
        "import sys, experiments.data.workers, experiments.data.listops_rows; "
        "assert not {'jax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=subprocess_env, check=True)
