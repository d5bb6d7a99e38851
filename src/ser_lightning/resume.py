"""Another place of `optim.restate_progress`, until every branch imports it from there."""

from ser_lightning.optim import restate_progress

__all__ = ["restate_progress"]
