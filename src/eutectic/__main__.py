"""`python -m eutectic`."""

from eutectic.cli import main

main()
