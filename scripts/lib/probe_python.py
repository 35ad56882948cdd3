"""Print what scripts/setup needs to know about the interpreter that runs this.

One line: version, pointer size in bits, and whether a virtual environment can be made with it. It must run on
old Pythons too, since it is there to recognise them.
"""

import struct
import sys

try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401

    can_make_venv = "venv"
except ImportError:
    can_make_venv = "no-venv"

print(".".join(map(str, sys.version_info[:3])), 8 * struct.calcsize("P"), can_make_venv)
