"""Online predictions on Ray Serve."""

from flowers.interpreter import check_interpreter

check_interpreter()
