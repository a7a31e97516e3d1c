"""Train, test and serve an image classifier from a folder of photos, on Ray.

Importing this package loads neither TensorFlow nor Ray.
"""

__version__ = "0.1.0"
