"""Pure functions on arrays: the API for users of any framework, or of none."""

from ssm.ops.linear_scan import linear_scan
from ssm.ops.sharding import axis_names

__all__ = ["axis_names", "linear_scan"]
