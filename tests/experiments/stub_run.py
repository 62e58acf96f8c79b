"""A run that does what it is told, in a few milliseconds: a program for sweeps.

The environment variable STUB maps a word of the command line to what to do; each start
is a line of `started` in the folder STUB_LOG.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from experiments import process


def main() -> int:
    flags = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    log = Path(os.environ["STUB_LOG"])
    with (log / "started").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    orders = json.loads(os.environ["STUB"])
    order = next((do for word, do in orders.items() if word in sys.argv), "finish")
    if order == "fail":
        process.leave_reason("not finite at step 3")
        return 1
    if order == "crash":
        return 3
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "wait":
        for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
            signal.signal(number, lambda *_, code=code: sys.exit(code))
        process.end_with_starter()
        (log / "waiting").write_text(str(os.getpid()))
        time.sleep(60)
    if order == "finish late":  # too late to notice a signal
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        (log / "waiting").write_text(str(os.getpid()))
        time.sleep(0.5)
    if flags.get("--mode", "train") == "train":
        workdir = Path(flags["--workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").write_text("{}")
    return 0


if __name__ == "__main__":
    if "--sweep" in sys.argv:  # the program that starts the others
        from experiments import main as experiments_main
        from experiments import sweep

        sweep.PROGRAM = "tests.experiments.stub_run"
        signal.signal(signal.SIGTERM, experiments_main.end)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv.remove("--sweep")
        sys.exit(experiments_main.main(sys.argv))
    sys.exit(main())
