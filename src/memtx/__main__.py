"""`python -m memtx` is the command `memtx`; `torchrun -m memtx train ...` starts several of it."""

from memtx.cli import main

if __name__ == "__main__":
    main()
