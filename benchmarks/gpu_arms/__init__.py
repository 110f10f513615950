"""What `benchmarks.gpu` measures, a file by subject, and the two processes that measure it."""
