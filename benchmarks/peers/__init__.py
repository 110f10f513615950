"""Peers: what users would pick instead, one small file each, that its authors are invited to mend.

    make peers                                       an environment for each of them
    .venv/bin/python -m benchmarks.peers SOURCE      sets, proof, figures, record and page

A peer's file has `PEER`, what it enters and cannot do; `write`, its conversion, if it has a format;
and `open_epochs`, which returns a function that yields one epoch of (images, labels). It imports
its package in functions only, since the file is also read where the package is not installed.
`contract.py` is all that it needs of this project.
"""
