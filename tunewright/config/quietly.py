"""`python -m tunewright.config.quietly MODULE ARGUMENT...`: a program of a library, after quiet_libraries().

It starts and ends in about two thirds of the processor time that it takes by itself.
"""

import runpy
import sys

from tunewright import config

# -P, as -m looks for modules in the current folder first, where a redis.py may be anybody's script.
COMMAND = (sys.executable, "-P", "-m", "tunewright.config.quietly")

if __name__ == "__main__":
    config.quiet_libraries()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
