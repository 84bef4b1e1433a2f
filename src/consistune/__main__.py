"""`python -m consistune`: the console script."""

from consistune.cli.main import main

main()
