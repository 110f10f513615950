"""Report: one self-contained page of a run, or of several."""
