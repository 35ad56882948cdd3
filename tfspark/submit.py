"""The ``tfspark`` command as a script for ``spark-submit``, which needs a file.

``spark-submit --master spark://host:7077 "$(tfspark submit-script)" run experiment.yaml``
"""

from tfspark.cli import main

if __name__ == "__main__":
    main()
