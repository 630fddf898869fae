"""What other load generators report of the server whose truth is known, beside what ours does.

``python -m benchmarks.peers`` runs them all, interleaved, and writes the tables of ``README.md``. Each peer has an
environment of its own (``install``); none is a dependency of ours.
"""
