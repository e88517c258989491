"""What each process of `test_watch` runs: `python -m tests.train.watch_worker JOB`.

The second process fails, and the first one, on a node of its own, waits for nobody.
"""

import os
import signal
import sys
import time

from memtx.train import launched, watch


def main(job: str) -> None:
    # As in earnest, but sooner.
    watch.EVERY, watch.SILENT, watch.GRACE = 0.2, 3.0, 0.5
    with launched() as parallelism:
        if parallelism.rank == 1 and job == "raise":
            raise RuntimeError("the second process dies")
        if parallelism.rank == 1 and job == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600.0)


if __name__ == "__main__":
    main(sys.argv[1])
