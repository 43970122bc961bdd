"""Run a program in a network namespace: `python -I -S enter.py FD PARENT PROGRAM [ARGUMENT...]`.

The program takes this process's place, so its process id is that of whoever was started. It gets SIGKILL when the
process that started it ends, however that ends.
"""

import ctypes
import os
import signal
import sys

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1

namespace, parent, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) or libc.setns(namespace, _CLONE_NEWNET):
    sys.exit(f"error: cannot enter the network namespace: {os.strerror(ctypes.get_errno())}")
if os.getppid() != parent:
    sys.exit("error: whoever wanted this program is gone")
os.close(namespace)
os.execvp(program[0], program)
