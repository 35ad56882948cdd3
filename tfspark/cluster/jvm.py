"""Read Spark's own objects in its JVM through Py4J. A call takes about a third of a millisecond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from py4j.java_collections import JavaArray
from py4j.java_gateway import JavaClass

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark import SparkContext


def java_class(context: SparkContext, name: str) -> JavaClass:
    """Return a class of the JVM, given its full name.

    With ``context._jvm.org.apache...`` the JVM searches all its jars for a class of each of these names, which takes
    some 50 ms, each time.
    """
    return JavaClass(name, context._gateway._gateway_client)


def each(scala: JavaObject | JavaArray) -> Iterator[JavaObject]:
    """Yield the items of a Scala sequence or a Java array."""
    if isinstance(scala, JavaArray):
        return iter(scala)
    return (scala.apply(i) for i in range(scala.size()))
