"""`ImageFeature`: convert vectors to images, by Spark alone. Driver only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable

from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.spark_names import quoted
from tfspark.ml.params import CheckedParams, declare, sizes, text, whole

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ImageFeature(
    Transformer, CheckedParams, HasInputCol, HasOutputCol, DefaultParamsReadable[Any], DefaultParamsWritable
):
    """Converts vectors or arrays of pixels to images: arrays of height x width x channels.

    ``ImageFeature(inputCol="features", outputCol="raw_image", numPixels=784)``: images of 28 x 28 in one channel, or of
    `imageShape`.
    """

    inputCol = declare("inputCol", "the column of vectors or arrays", text)
    outputCol = declare("outputCol", "the column of the images", text)
    numPixels = declare(
        "numPixels", "number of values of a row: a square image unless imageShape is set", whole(1)
    )
    imageShape = declare("imageShape", "height, width and channels", sizes)

    def __init__(self, **params: Any):
        super().__init__()
        self._setDefault(inputCol="features", outputCol="raw_image", numPixels=784)
        self._set(**self._named(params))

    def _contradiction(self) -> str | None:
        if self.isSet("imageShape"):
            shape = self.getOrDefault("imageShape")
            if len(shape) != 3 or (
                self.isSet("numPixels") and math.prod(shape) != self.getOrDefault("numPixels")
            ):
                return f"expected imageShape=[height, width, channels] of numPixels values, got {shape}"
        elif math.isqrt(self.getOrDefault("numPixels")) ** 2 != self.getOrDefault("numPixels"):
            return (
                f"expected imageShape beside numPixels={self.getOrDefault('numPixels')}, which is no square"
            )
        return None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        if self.isSet("imageShape"):
            height, width, channels = self.getOrDefault("imageShape")
            return height, width, channels
        side = math.isqrt(self.getOrDefault("numPixels"))
        return side, side, 1

    def _transform(self, dataset: DataFrame) -> DataFrame:
        from pyspark.ml.functions import vector_to_array
        from pyspark.sql import functions as sf

        name = self.getOrDefault("inputCol")
        check_columns(Columns((Column(name),)), dataset.columns)
        kind, column = dataset.schema[name].dataType, dataset[quoted(name)]
        if not (hasattr(kind, "sqlType") or kind.typeName() == "array"):
            raise ConfigError(
                f"expected vectors or arrays in column {name!r}, got {kind.simpleString()}; set inputCol"
            )
        values = (
            vector_to_array(column, "float32") if hasattr(kind, "sqlType") else column.cast("array<float>")
        )
        height, width, channels = self.shape
        wrong = sf.concat(
            sf.lit(f"column {name!r} has "),
            sf.size(values).cast("string"),
            sf.lit(
                f" values, expected {math.prod(self.shape)} for an image of {list(self.shape)}; set imageShape"
            ),
        )
        fits = sf.when(sf.size(values) == math.prod(self.shape), values).otherwise(sf.raise_error(wrong))

        def line(row: Any) -> Any:
            places = sf.sequence(sf.lit(0), sf.lit(width - 1))
            return sf.transform(
                places, lambda place: sf.slice(fits, (row * width + place) * channels + 1, channels)
            )

        image = sf.transform(sf.sequence(sf.lit(0), sf.lit(height - 1)), line)
        return dataset.withColumn(self.getOrDefault("outputCol"), sf.when(column.isNotNull(), image))
