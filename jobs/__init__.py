"""Entry points: what `ray job submit -- python -m jobs.<name>` runs."""

import time

from flowers.interpreter import check_interpreter

STARTED = time.monotonic()
check_interpreter()
