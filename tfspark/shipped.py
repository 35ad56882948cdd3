"""Find the configurations and models that come with tfspark.

Used on the driver by all functions that accept the path of one.
"""

from __future__ import annotations

from pathlib import Path

from tfspark.errors import ConfigError

_KINDS = {"configs": ".yaml", "models": ".py"}


def find_shipped(relative: str) -> Path:
    """Find a file by its path, or a file that comes with tfspark by its name.

    Args:
        relative: any path; ``configs/x.yaml`` and ``models/x.py`` are also looked up in the installation.

    Returns:
        The path itself if the file exists, else that of tfspark's file.

    Raises:
        ConfigError: neither exists; lists tfspark's files.
    """
    path = Path(relative)
    if path.is_file():
        return path
    root = _shipped_root()
    if root is not None and path.parts[:1] in [(kind,) for kind in _KINDS] and (root / path).is_file():
        return root / path
    what = "a directory" if path.is_dir() else "no such file"
    raise ConfigError(
        f"{relative}: expected a file, got {what}; the working directory is {Path.cwd()}; these come with tfspark: "
        f"{', '.join(list_shipped()) or 'nothing'}"
    )


def list_shipped() -> list[str]:
    """Return the names of tfspark's files, in the form that `find_shipped` accepts."""
    root = _shipped_root()
    if root is None:
        return []
    return [
        f"{kind}/{path.name}"
        for kind, suffix in _KINDS.items()
        for path in sorted((root / kind).glob(f"*{suffix}"))
        if not path.name.startswith("_")
    ]


def _shipped_root() -> Path | None:
    """Return the directory with ``configs`` and ``models``: in the package, or the root of a checkout."""
    package = Path(__file__).resolve().parent
    if (package / "_shipped").is_dir():
        return package / "_shipped"
    return package.parent if (package.parent / "pyproject.toml").is_file() else None
