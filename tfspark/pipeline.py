"""`tfspark.migrate.pipeline` under the name that programs for TensorFlowOnSpark import."""

import sys

from tfspark.migrate import pipeline

sys.modules[__name__] = pipeline
