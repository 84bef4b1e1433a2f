"""`python -m consistune` runs the command line."""

from consistune.cli.main import main

main()
