"""Check the messages of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises(kind: type[Exception], *parts: str) -> Iterator[None]:
    """Expect an error whose message has all parts: what was expected, what it got, what to do."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
