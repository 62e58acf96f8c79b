import subprocess
import sys


def test_tasks_need_neither_torch_nor_tensorflow(subprocess_env, tmp_path):
    code = f"""
import sys
import experiments.tasks.delayed_copy
import experiments.tasks.digits
from tests.experiments.tasks.test_listops import make
make({str(tmp_path)!r})  # preparing and loading import more
found = {{"torch", "tensorflow"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], env=subprocess_env, check=True)
