"""How a selection is solved: thresholds where they suffice, else a linear relaxation and a core.

`programme` holds a problem as arrays; `thresholds` is exact in O(n log n) for one partition;
`relaxation` solves the linear relaxation of millions of rows; `integer` makes whole rows of it;
`caution` handles concave objectives by cuts; `conflicts` says why nothing satisfies a problem;
`certificate` checks an answer without looking at how it was found.
"""
