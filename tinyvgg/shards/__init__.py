"""Where the halves meet: the on-disk format and the only code that knows its file names."""
