"""OpenVINO in a process that goes on after it."""

import subprocess
import sys

_ENDS_A_CHILD = """
import faulthandler, signal, subprocess
from terraseg.mapping.runtimes.onnx_openvino import openvino_core

faulthandler.enable()
cores = [openvino_core(), openvino_core()]
for core in cores:
    core.get_property("CPU", "FULL_DEVICE_NAME")
del core
while cores:
    cores.pop(0)
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run(["true"])
"""


def test_a_process_outlives_openvino_and_the_end_of_a_child() -> None:
    done = subprocess.run([sys.executable, "-c", _ENDS_A_CHILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
