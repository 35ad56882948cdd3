"""Write ``docs/keras-features.md`` and ``docs/keras-examples.md``: ``PYTHONPATH=tests python -m conformance.page``."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from conformance.keras_examples import EXAMPLES, Covered, LeftOut
from conformance.table import EQUAL, FEATURES, STATED, Feature, Stated

DOCS = Path(__file__).parents[2] / "docs"
PAGE, EXAMPLES_PAGE = DOCS / "keras-features.md", DOCS / "keras-examples.md"
HEAD = """# Features of Keras

This page lists which features of Keras's `compile` and `fit` train as in plain Keras. It is generated from the table in
`tests/conformance/table.py`. Each row is a small model. Plain Keras trains it in one process. tfspark trains it on the
same global batches with one and with two workers, and with one worker and a parameter server. *Equal* means: weights,
history and `evaluate` are the same to float tolerance.

Two rules apply to all rows:

- **A short batch.** If the rows of an epoch do not fill its last batch, synchronous workers fill it up with rows of
  weight 0. Losses, gradients, metrics and history are those of the real rows: workers add up their numbers of real
  rows.
- **Parameter servers** let workers take steps at the same time, on weights that other workers change meanwhile. *Equal*
  holds for one worker, whose steps are sequential. With several workers, it holds only for metrics and evaluations on
  the same weights.

*Refused* means an error before the first step; the error says what to use instead. A `main_fun` calls Keras's `fit`
itself, on `ctx.dataset()` and under `ctx.strategy`; it trains as synchronous training does.

[Keras's examples](keras-examples.md) lists the rows that stand for each example of Keras.
"""
EXAMPLES_HEAD = """# Keras's examples

The examples for Keras 3 that are or were in [Keras's repository](https://github.com/keras-team/keras/tree/master/examples),
and the rows of [features of Keras](keras-features.md) that stand for each. A row is a small model with the example's
kinds of `compile`, `fit`, steps, losses and layers. It does not have the example's data or size. This page is generated
from `tests/conformance/keras_examples.py`.

The last column describes training with synchronous workers: *equal* to plain Keras, or with the named differences.
Three rules apply to every example:

- Its rows come from a DataFrame or from files, and its model comes from `build_model` or from a `main_fun`.
- Its own `train_step` gets `(x, y, sample_weight)`: `x, y, _ = keras.utils.unpack_x_y_sample_weight(data)`.
- [Dropout and other random layers, and BatchNormalization](keras-features.md#models) are not as in one process. Many
  examples have them.
"""


def page() -> str:
    """Return the page of features."""
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


def examples_page() -> str:
    """Return the page of Keras's examples."""
    rows = {feature.name: feature for feature in FEATURES}
    parts = [EXAMPLES_HEAD, counts_of_examples(rows)]
    for folder, examples in EXAMPLES.items():
        parts.append(f"\n## {folder}\n")
        parts.append("| example | rows | synchronous |\n|---|---|---|")
        parts.extend(line_of_example(name, example, rows) for name, example in examples.items())
    return "\n".join([*parts, ""])


def counts_of_examples(rows: dict[str, Feature]) -> str:
    every = [example for examples in EXAMPLES.values() for example in examples.values()]
    covered = [promises(example, rows) for example in every if isinstance(example, Covered)]
    reasons = Counter(example.reason for example in every if isinstance(example, LeftOut))
    equal = covered.count([])
    left_out = "".join(f"- {count}: {reason}\n" for reason, count in reasons.most_common())
    return (
        f"Of {len(every)} examples, rows stand for {len(covered)}: {equal} are equal, {len(covered) - equal} equal "
        f"except for the named differences. The others:\n\n{left_out}"
    )


def promises(example: Covered, rows: dict[str, Feature]) -> list[str]:
    """Return the promises of an example's rows that are not *equal*, and its note."""
    differences = [rows[name].synchronous for name in example.rows if rows[name].synchronous != EQUAL]
    return [*dict.fromkeys(differences), *filter(None, [example.note])]


def line_of_example(name: str, example: Covered | LeftOut, rows: dict[str, Feature]) -> str:
    if isinstance(example, LeftOut):
        return f"| {name} | | {example.reason} |"
    return f"| {name} | {'; '.join(example.rows)} | {'; '.join(promises(example, rows)) or EQUAL} |"


def order(group: str) -> int:
    """Return the position of a group on the page."""
    return list(dict.fromkeys(row.group for row in [*FEATURES, *STATED])).index(group)


def line(row: Feature | Stated) -> str:
    synchronous = row.synchronous
    if isinstance(row, Feature) and row.of_batches:
        synchronous += "; the loss of `evaluate` depends on each worker's own batches"
    name = row.name.replace("|", "\\|")
    return f"| {name} | {synchronous} | {row.servers} | {row.main_fun or synchronous} |"


def kind_of(promise: str) -> str:
    if promise == EQUAL:
        return "equal"
    is_refused = promise.startswith(("refused", "not possible"))
    return "refused" if is_refused else "equal except for the named differences"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    EXAMPLES_PAGE.write_text(examples_page(), encoding="utf-8")
