"""Train, test and serve an image classifier from a folder of photos, on Ray.

Importing this package loads neither TensorFlow nor Ray.
"""

import os

# TensorFlow would take all the memory of every GPU it sees, and there may be several processes at one: the job, actors,
# training workers, replicas. It reads this when it is imported, so before that in each of them.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

__version__ = "0.1.0"
