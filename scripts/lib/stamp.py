"""Print what an installation depends on: interpreter, place, extra and the hash of pyproject.toml.

scripts/setup keeps the text in the virtual environment and installs again when it changes.

Usage: stamp.py REPOSITORY EXTRA
"""

import hashlib
import pathlib
import sys

repository, extra = sys.argv[1:]
print("python", sys.version.split()[0])
# The scripts of a virtual environment contain its path, so a moved repository needs a new environment.
print("place", repository)
print("extra", extra)
print("pyproject", hashlib.sha256(pathlib.Path(repository, "pyproject.toml").read_bytes()).hexdigest())
