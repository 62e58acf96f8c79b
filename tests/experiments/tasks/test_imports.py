import subprocess
import sys


def test_tasks_need_neither_torch_nor_tensorflow(subprocess_env, tmp_path):
    code = f"""
import sys
import importlib
import pkgutil
from experiments import tasks
for module in pkgutil.iter_modules(tasks.__path__):
    importlib.import_module(f"experiments.tasks.{{module.name}}")
from tests.experiments.tasks import test_listops, test_retrieval, test_text
for task in (test_listops, test_retrieval, test_text):
    task.make({str(tmp_path)!r})  # preparing and loading import more
found = {{"torch", "tensorflow"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], env=subprocess_env, check=True)
