"""How much of the budgets right engines use: ``python -m lmconform.calibrate``.

Two engines of different code, each in several legal ways of working, and the kernels of torch are held against the
oracle and against themselves. The factors of ``judging/budgets.py`` follow from the largest shares seen; the tables
stand in ``spec/numerics.md``.
"""
