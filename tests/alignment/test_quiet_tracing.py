"""What torch logs while it makes a graph is not shown beside the problem that is raised."""

from __future__ import annotations

import subprocess
import sys

REFUSED = """
import torch, eutectic
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
try:
    eutectic.align(net, other, inputs=torch.randn(3, 9))
except eutectic.EutecticError as error:
    print(error.problems[0].code)
import logging
print(logging.getLogger("torch").level < logging.CRITICAL)
"""


def test_inputs_of_another_shape_leave_no_log():
    # In a process of its own, since the handlers of torch's log hold the standard error that they were made with.
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["G140", "True"], "")
