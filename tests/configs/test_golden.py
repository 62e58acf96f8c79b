"""The configs of Long Range Arena are what they were, to the last parameter."""

import pytest

from tests.configs import golden
from tests.pairwise import mostly_slow

CASES = [(task, family) for task in golden.TASKS for family in golden.families(task)]
QUICK = [
    ("listops", "s5"),
    ("text", "hawk"),
    ("retrieval", "liquid_s4_pb"),
    ("image", "hgrn"),
    ("pathfinder", "s4d"),
    ("pathx", "lru"),
]


@pytest.mark.parametrize("case", mostly_slow(CASES, *QUICK))
def test_a_config_is_what_it_was(case):
    """If it is meant to differ, `python -m tests.configs.golden` writes it anew."""
    task, family = case
    assert golden.dump(*case).rstrip("\n") == golden.sections(task)[family]


@pytest.mark.parametrize("task", golden.TASKS)
def test_nothing_is_stored_for_no_config(task):
    assert list(golden.sections(task)) == golden.families(task)
