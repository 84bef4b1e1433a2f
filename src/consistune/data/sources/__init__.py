"""Image sets in other people's formats, one file a kind of storage; `detect` finds out which it is."""
