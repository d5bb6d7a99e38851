"""The 3DIEBench stage: the linear probe on objects seen from random sides.

Source: Garrido et al. 2023 (SIE); SER Table 1.
"""

from ser_lightning.evaluation.stages.linear import LinearStage


class ThreeDIEBenchStage(LinearStage):
    """Trains linear classifiers on objects, split by object; the arguments are `LinearStage`'s."""

    name = "3diebench"
    folders = (("3diebench", "data.source.root"),)
