"""`python -m ppl_lvm` is `ppl-lvm`."""

from ppl_lvm.cli import main

if __name__ == "__main__":  # the processes of a sweep import this module
    main()
