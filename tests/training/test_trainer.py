"""What the job says when Ray gives up."""

from __future__ import annotations

import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from flowers.training.trainer import _cause

# As TensorFlow says it in a worker whose fellow was killed: which of its words come depends on the moment.
WAITED = (
    "Traceback ...\ntensorflow.python.framework.errors_impl.UnavailableError: Graph execution error:\n"
    "Detected at node while/adam_w_1/CollectiveReduceV2 defined at (most recent call last):\n"
    "\t [[{{node while/adam_w_1/CollectiveReduceV2}}]] [Op:__inference_steps_5151]"
)
ABORTED = "UnavailableError: Collective ops is aborted by: Socket closed\nThe error could be from a previous operation."
DIED = "The actor died because its worker process has died. Worker exit type: SYSTEM_ERROR"
MEMORY = "Task was killed due to the node running low on memory."
WRONG = "Traceback ...\nValueError: received 3"
UNEXPECTED = "training failed: a worker ended unexpectedly"


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ([DIED], UNEXPECTED),
        ([WAITED], UNEXPECTED),
        ([ABORTED], UNEXPECTED),
        ([WAITED, DIED], UNEXPECTED),
        ([ABORTED, MEMORY], "training failed: memory ran out"),
        ([WAITED, WRONG], "training failed: ValueError: received 3"),
        ([WRONG, WAITED], "training failed: ValueError: received 3"),
    ],
)
def test_the_worker_that_failed_is_heard_before_those_that_waited_for_it(failures: list[str], said: str) -> None:
    error = WorkerGroupError("\n".join(failures), {rank: Exception(text) for rank, text in enumerate(failures)})
    line = str(_cause(error))
    assert line.startswith(said)
    assert line.endswith("the same command goes on from the last finished epoch")
    assert "\n" not in line


def test_a_failure_of_the_controller_is_said_in_a_line() -> None:
    assert "no place for workers" in str(_cause(ControllerError(RuntimeError("no place for workers"))))
