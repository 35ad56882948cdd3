"""Convert errors that TensorFlow raises inside tf.data to errors about data. Runs in the trainer.

An operation in a graph does not know its column. The column is found from the operation's scope or from the message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tfspark.errors import DataError

_SCOPED = re.compile(r"tfspark_(image|bytes)_((?:[0-9a-f]{2})+)/")
_WORDS = {
    "image": "expected JPEG, PNG, GIF or BMP files, one is none or damaged",
    "bytes": "expected as many bytes in every Example",
}
_ASSERTED = re.compile(r"assertion failed: \[((?:column|label) .*?)\](?:\s*\[\[|\s*$)", re.DOTALL)
_PARSED = re.compile(
    r"(?:Key|Feature): (.*?)(?:, Index: \d+| \(data type: \w+\)(?= is))\.?\s*(.*?)\s*\[\[", re.DOTALL
)
_TEXT = re.compile(
    r"Cast string to \w+ is not supported"
    r"|[^\n]{0,80}(?:DataType string|dtype: 'string'|dtype=string|tf\.string)[^\n]{0,60}"
)
"""Patterns of the messages in which TensorFlow and Keras report text as input."""
_NO_EXAMPLE = "Could not parse example input"


def image_scope(column_name: str) -> str:
    """Return the scope in which a column's images are decoded, with the name in hexadecimal, so any name works."""
    return f"tfspark_image_{column_name.encode().hex()}"


def bytes_scope(column_name: str) -> str:
    """Return the scope in which a feature's raw values are decoded."""
    return f"tfspark_bytes_{column_name.encode().hex()}"


def as_data_error(error: BaseException) -> BaseException:
    """Return a DataError for an error of TensorFlow about data; return other errors unchanged."""
    if type(error).__name__ != "InvalidArgumentError":
        return error
    text = _explained(str(error))
    return error if text is None else DataError(text)


def as_text_error(error: BaseException, text_columns: Sequence[str]) -> BaseException:
    """Return a DataError that names the text columns if TensorFlow failed to compute with text.

    This cannot be checked earlier, because a model may have a layer for text.

    Args:
        error: the error that was raised.
        text_columns: the columns that are fed as text.
    """
    said = _TEXT.search(str(error))
    if not text_columns or said is None or isinstance(error, DataError):
        return error
    names = ", ".join(map(repr, text_columns))
    one = len(text_columns) == 1
    return DataError(
        f"{'column' if one else 'columns'} {names} {'is' if one else 'are'} text (string), where the model or its loss "
        f"expects numbers ({said[0]}); cast in Spark before feeding, for example "
        f"df[{text_columns[0]!r}].cast('double'); if a label names classes, number them with Spark's StringIndexer (in "
        "YAML data.label.classes: infer); or give the model a layer for text, such as keras.layers.TextVectorization"
    )


def _unescaped(text: str) -> str:
    """Undo TensorFlow's escapes of quotes and of non-ASCII bytes."""
    return text.encode().decode("unicode_escape").encode("latin-1", "replace").decode(errors="replace")


def _explained(message: str) -> str | None:
    if found := _ASSERTED.search(message):
        return _unescaped(" ".join(found[1].split()).replace("] [", " "))
    if found := _SCOPED.search(message):
        reason = re.search(r"Iterator\S*: (.*?)\s*\[\[", message, re.DOTALL)
        cause = f" ({reason[1]})" if reason else ""
        name = bytes.fromhex(found[2]).decode()
        return f"column {name!r} {_WORDS[found[1]]}{cause}; filter or repair such rows before feeding"
    if found := _PARSED.search(message):
        return (
            f"column {found[1]!r} of the Examples: {found[2]}; expected every Example to hold it as declared, or as "
            "the first has it; correct dtype and shape, declare it ragged, or read without Columns(examples=...)"
        )
    if _NO_EXAMPLE in message:
        return f"expected serialized tf.train.Example records, one is none: {message[:300]}"
    return None
