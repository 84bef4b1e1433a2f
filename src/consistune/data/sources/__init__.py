"""Image sets in other projects' formats: one file for each kind of storage; `detect` has the table."""
