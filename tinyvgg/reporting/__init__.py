"""Reporting: run records in, tables and plots out."""
