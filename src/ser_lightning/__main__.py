"""`python -m ser_lightning` is `ser-fit`."""

from ser_lightning.cli import main

if __name__ == "__main__":
    main()
