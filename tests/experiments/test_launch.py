"""Launchers are the one command, and start it again when it was pre-empted.

What they call is stood in for by small scripts on PATH, which write down how they were
called and end as they are told.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.experiments.conftest import CONFIG, ROOT

LAUNCH = ROOT / "experiments/launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# Runs a script. A job in the background ignores Control-C, and bash would keep it so.
HEARS_CONTROL_C = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""

# Ends with the next code of $NAME_CODES, and 0 after them; `describe` prints the next
# of $STATES.
STUB = """\
#!/bin/bash
name=$(basename "$0")
printf '%q ' "$name" "$@" >> "$LOG/called"; echo >> "$LOG/called"
next() {
  local file=$LOG/$1 count
  echo >> "$file"; count=$(wc -l < "$file"); echo "${@:count+1:1}"
}
if [[ $* == *describe* ]]; then next states $STATES; exit; fi
codes=${name}_CODES
code=$(next "$name.count" ${!codes-})
exit "${code:-0}"
"""


@pytest.fixture
def launch(tmp_path):
    """Run a launcher among stubs; `called()` says what it called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "gcloud", "sky"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    (folder / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "LOG": str(tmp_path), "TPU_WAIT_SECONDS": "0"}

    def launch(script: str, *arguments: str, **variables: str):
        return subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env=env | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    launch.folder, launch.env = folder, env
    return launch


@pytest.fixture
def called(tmp_path):
    def called() -> list[list[str]]:
        log = tmp_path / "called"
        lines = log.read_text().splitlines() if log.exists() else []
        return [shlex.split(line) for line in lines]

    return called


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) == script.read_text().startswith("#!") or (
        script.suffix == ".sbatch"
    )


COMMAND = [f"{CONFIG}:plain", "runs/x"]
DRY_RUNS = {
    "slurm.sh": ["--nodes=2", *COMMAND],
    "skypilot.sh": ["--num-nodes=2", *COMMAND],
    "tpu_vm.sh": ["my-tpu", "zone", *COMMAND],
    "ssh.sh": ["a,b", *COMMAND],
}


@pytest.mark.parametrize("script", DRY_RUNS)
def test_dry_run_prints_and_calls_nothing(script, launch, called):
    flag = "--config.data.source=a 'b'"
    done = launch(script, "--dry-run", *DRY_RUNS[script], flag)
    assert done.returncode == 0, done.stderr
    assert called() == []
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(words) == (2 if script == "ssh.sh" else 1)
    assert f"{CONFIG}:plain" in " ".join(words[0])
    assert words[0][0] in ("sbatch", "sky", "gcloud", "ssh")


@pytest.mark.parametrize("script", DRY_RUNS)
def test_too_few_words_are_refused_with_the_usage(script, launch, called):
    done = launch(script, "one")
    assert done.returncode == 1 and f"usage: {script}" in done.stderr
    assert called() == []


def test_slurm_makes_an_array_of_several_runs(launch, called):
    flags = ["--config.seeds=0,1,2", "--config.data.source=a b"]
    assert launch("slurm.sh", "--nodes=2", *COMMAND, *flags).returncode == 0
    assert launch("slurm.sh", *COMMAND).returncode == 0
    script = str(LAUNCH / "slurm.sbatch")
    assert called() == [
        ["sbatch", "--nodes=2", "--array=0-2", script, *COMMAND, *flags],
        ["sbatch", script, *COMMAND],
    ]


def test_slurm_submits_nothing_that_is_refused(launch, called):
    done = launch("slurm.sh", *COMMAND, "--config.trian.steps=3")
    assert done.returncode == 1 and "did you mean train.steps" in done.stderr
    assert called() == []


def test_a_slurm_job_takes_its_run_and_is_requeued_if_pre_empted(launch, called):
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    done = launch("slurm.sbatch", *COMMAND, "--a=b c", **array, srun_CODES="75")
    assert done.returncode == 75
    main = ["srun", "python", "-m", "experiments.main"]
    main += [f"--config={COMMAND[0]}", "--workdir=runs/x"]
    expected = [[*main, "--index=3", "--a=b c"], ["scontrol", "requeue", "7_3"]]
    assert called() == expected
    alone = launch("slurm.sbatch", *COMMAND, SLURM_JOB_ID="9", srun_CODES="- 75")
    assert alone.returncode == 75
    assert called()[2:] == [main, ["scontrol", "requeue", "9"]]
    assert launch("slurm.sbatch", *COMMAND, srun_CODES="- - 1").returncode == 1
    assert launch("slurm.sbatch", *COMMAND).returncode == 0
    assert len(called()) == 6


def test_a_tpu_that_is_taken_away_is_waited_for(launch, called):
    done = launch(
        "tpu_vm.sh",
        *("my-tpu", "zone", *COMMAND, "--a=b c"),
        gcloud_CODES="75 255 0",
        STATES="READY PREEMPTED CREATING READY",
    )
    assert done.returncode == 0, done.stderr
    assert "my-tpu is not there: waiting" in done.stderr
    verbs = [call[4] for call in called()]
    describe = "describe"
    assert verbs == ["ssh", describe, "ssh", describe, describe, describe, "ssh"]
    (command,) = (word for word in called()[0] if word.startswith("--command="))
    assert "--worker=all" in called()[0]
    words = shlex.split(command.removeprefix("--command="))
    assert words[:2] == ["cd", "ssm-lab"]
    assert words[-1] == "--a=b c" and "--distributed=on" in words


def test_a_tpu_on_which_the_command_fails_is_an_error(launch, called):
    done = launch(
        "tpu_vm.sh", "my-tpu", "zone", *COMMAND, gcloud_CODES="1", STATES="READY"
    )
    assert done.returncode == 1 and len(called()) == 2


def test_skypilot_hands_the_command_to_its_nodes(launch, called, tmp_path):
    flags = ["--config.data.source=a 'b'", "--config.seeds=0,1"]
    assert launch("skypilot.sh", "--num-nodes=2", *COMMAND, *flags).returncode == 0
    (call,) = called()
    file = str(LAUNCH / "skypilot.yaml")
    assert call[:6] == ["sky", "jobs", "launch", "--yes", "--num-nodes=2", file]
    envs = dict(word.split("=", 1) for word in call[7::2])

    job = yaml.safe_load(Path(file).read_text())
    assert set(envs) == set(job["envs"])
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    (launch.folder / "python").write_text(STUB)
    env = launch.env | envs | nodes | {"SKYPILOT_NODE_RANK": "1"}
    subprocess.run(["bash", "-c", job["run"]], env=env, check=True)
    assert called()[1] == [
        *("python", "-m", "experiments.main"),
        *(f"--config={COMMAND[0]}", "--workdir=/runs/runs/x"),
        *("--coordinator_address=10.0.0.1:8476", "--process_count=2"),
        *("--process_id=1", *flags),
    ]


# Stands for the command on a host: writes down its start, and waits for a SIGTERM.
REMOTE = """\
#!/bin/bash
printf '%q ' "$@" > "$LOG/host.$BASHPID.tmp"; mv "$LOG/host.$BASHPID.tmp" "$LOG/host.$$"
if [[ "$*" == *process_id=1*--fail* ]]; then
  until [[ $(compgen -G "$LOG/host.*[0-9]" | wc -l) -eq 2 ]]; do sleep 0.01; done
  exit 3
fi
[[ "$*" != *--finish* ]] || exit 0
trap 'kill $!; exit 75' TERM
sleep 60 & wait
"""


@pytest.fixture
def hosts(launch, tmp_path):
    """Start `ssh.sh` on two hosts, which are shells here."""
    (launch.folder / "ssh").write_text('#!/bin/bash\nexec bash -c "$2"\n')
    (launch.folder / "ssh").chmod(0o755)
    (launch.folder / "python").write_text(REMOTE)

    started = []

    def start(*flags: str) -> subprocess.Popen:
        command = [LAUNCH / "ssh.sh", "me@one,two", *COMMAND, *flags]
        process = subprocess.Popen(
            [sys.executable, "-c", HEARS_CONTROL_C, *command],
            env=launch.env | {"REMOTE": str(tmp_path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def commands(tmp_path) -> list[list[str]]:
    """Return the command lines of both hosts, once they have started."""
    deadline = time.monotonic() + 20
    while len(files := list(tmp_path.glob("host.*[0-9]"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines = [shlex.split(file.read_text()) for file in files]
    return sorted(lines, key=lambda words: [w for w in words if "process_id" in w])


def test_ssh_starts_one_process_a_host(hosts, tmp_path):
    process = hosts("--finish", "--a=b c")
    assert process.wait(20) == 0
    expected = ["-m", "experiments.main", f"--config={COMMAND[0]}", "--workdir=runs/x"]
    expected += ["--coordinator_address=one:8476", "--process_count=2"]
    assert commands(tmp_path) == [
        [*expected, f"--process_id={index}", "--finish", "--a=b c"] for index in (0, 1)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_has_all_hosts_save_and_end(number, hosts, tmp_path):
    process = hosts()
    commands(tmp_path)
    process.send_signal(number)
    assert process.wait(20) == 75


def test_a_host_that_fails_ends_the_others(hosts, tmp_path):
    process = hosts("--fail")
    commands(tmp_path)
    assert process.wait(20) == 3
