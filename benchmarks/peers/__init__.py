"""Other attribution packages, each run in an environment of its own on the same problem.

`python -m benchmarks.peers NAME ...` makes the environments. A run reads a folder that
`exchange.write_problem` filled, in a process of the peer's own interpreter, and writes an npz.
"""
