"""The numbers that the README claims, measured on this machine: ``make figures``.

Absolute figures stand beside a calibration of the machine; what counts are ratios, each the geometric mean of
interleaved pairs with its interval. :mod:`benchmarks.figures.__main__` names them all.
"""
