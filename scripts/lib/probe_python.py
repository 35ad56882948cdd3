"""Print what scripts/setup needs to know about the interpreter that runs this program.

One line: version, pointer size in bits, and whether the interpreter can make a virtual environment. This program must
also run on old Pythons, so that scripts/setup can recognise them.
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
