"""Long Range Arena, all six tasks, one run each.

    python -m experiments.main --config=configs/lra/suite.py:lru --workdir=DIR
    python -m experiments.main --config=configs/lra/suite.py:lru+s5,tiny --workdir=DIR
    python -m experiments.report DIR

A variant is one family or several, then the modifiers of all: what the config files of
the tasks know. The runs go to DIR/TASK-FAMILY, with `--config.seeds=0,1,2` to
DIR/TASK-FAMILY/seed-0 and so on. What is finished is left alone; what stopped goes on.

    --config.SECTION.KEY=VALUE   in every run
    --mode=prepare               only make the data of all tasks
    --dry-run                    print the commands, numbered from 0
    --index=I                    only run I, as in an array of jobs
    --index=I/N                  only runs I, I + N, I + 2 N, ...: one of N shares

Files of one's own are found under `--config.data.source=FOLDER` by their names. Where
tasks want different overrides, a file like this one gives them to its points:
`Point("text", "text.py:lru", {"data.source": "..."})`.
"""

from configs.sweep import Point

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")


def sweep(variant: str = "lru") -> list[Point]:
    """Return the six tasks for each family of `FAMILY+FAMILY,MODIFIER`."""
    families, *modifiers = variant.split(",")
    return [
        Point(f"{task}-{family}", f"{task}.py:{','.join([family, *modifiers])}")
        for family in families.split("+")
        for task in TASKS
    ]
