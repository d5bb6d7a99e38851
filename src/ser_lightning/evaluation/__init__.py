"""Measuring representations, in stages on a checkpoint and while training.

`stages/` has the protocols with all their settings, such as the linear probe's learning rates in
`stages/linear.py`; `metrics/` the definitions of the numbers; `online` what is measured while
training. The other files are shared by stages: `stage` and `features` by all, `probe` and
`probe_stage` by those that train heads, `linear_head` and `benchmark_stage` by those that test one.
"""

from ser_lightning.evaluation.online import OnlineEvaluation

__all__ = ["OnlineEvaluation"]
