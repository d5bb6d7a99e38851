"""The format that measuring writes and reporting reads.

`record.py` a result, `hits.py` which test images were right, `measures.py` words for metrics,
`division.py` which record is divided by which, `ratios.py` by which formula.
"""
