"""`python -m sct`: the console script."""

from sct.cli.main import main

main()
