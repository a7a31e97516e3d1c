"""Entry points: what `ray job submit -- python -m jobs.<name>` runs."""

import time

STARTED = time.monotonic()
