"""``docs/keras-features.md``, made from the table: ``PYTHONPATH=tests python -m conformance.page``."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from conformance.table import EQUAL, FEATURES, STATED, Feature, Stated

PAGE = Path(__file__).parents[2] / "docs" / "keras-features.md"
HEAD = """# Features of Keras

Which features of Keras's `compile` and `fit` train as in plain Keras. This page is generated from the table in
`tests/conformance/table.py`. Each row is a small model. Plain Keras trains it in one process, and tfspark trains it on
the same global batches with one and with two workers, and with a worker of parameter servers. *Equal* means: weights,
history and `evaluate` are the same to float tolerance.

Two rules apply to all rows:

- **A short batch.** If the rows of an epoch do not fill its last batch, synchronous workers fill it up with rows of
  weight 0. Losses, gradients, metrics and history are those of the real rows: workers add up their numbers of real
  rows.
- **Parameter servers** let workers take steps at the same time, on weights that other workers change meanwhile. *Equal*
  holds for one worker, whose steps are sequential; with several, for metrics and evaluations on the same weights.

*Refused* means an error before the first step, which says what to use instead. A `main_fun` calls Keras's `fit` itself,
on `ctx.dataset()` and under `ctx.strategy`; it trains as synchronous training does.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    rows = [*FEATURES, *STATED]
    for group, features in itertools.groupby(
        sorted(rows, key=lambda row: order(row.group)), lambda row: row.group
    ):
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n")
        parts.append("| feature | synchronous | parameter servers | `main_fun` |\n|---|---|---|---|")
        parts.extend(line(feature) for feature in features)
    counts = Counter(kind_of(row.synchronous) for row in rows)
    said = ", ".join(
        f"{counts[kind]} {kind}" for kind in ("equal", "equal except for the named differences", "refused")
    )
    parts.append(f"\nOf {len(rows)} rows, synchronous training has {said}.\n")
    return "\n".join(parts)


def order(group: str) -> int:
    """Return the position of a group on the page."""
    return list(dict.fromkeys(row.group for row in [*FEATURES, *STATED])).index(group)


def line(row: Feature | Stated) -> str:
    synchronous = row.synchronous
    if isinstance(row, Feature) and row.of_batches:
        synchronous += "; `evaluate`: over each worker's own batches"
    name = row.name.replace("|", "\\|")
    return f"| {name} | {synchronous} | {row.servers} | {row.main_fun or synchronous} |"


def kind_of(promise: str) -> str:
    if promise == EQUAL:
        return "equal"
    return "refused" if promise.startswith("refused") else "equal except for the named differences"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
