"""What each process of `test_watch` runs: `python -m tests.train.watch_worker`.

The second process fails, and the first one, on a node of its own, waits for nobody.
"""

import time

from memtx.train import launched, watch


def main() -> None:
    # As in earnest, but sooner.
    watch.EVERY, watch.SILENT, watch.GRACE = 0.2, 3.0, 0.5
    with launched() as parallelism:
        if parallelism.rank == 1:
            raise RuntimeError("the second process dies")
        time.sleep(600.0)


if __name__ == "__main__":
    main()
