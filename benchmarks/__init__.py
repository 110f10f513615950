"""Benchmarks: each stage beside its ceiling and beside what a user would pick instead."""
