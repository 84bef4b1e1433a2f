"""Reports as self-contained HTML pages, plots, and grids of pictures."""
