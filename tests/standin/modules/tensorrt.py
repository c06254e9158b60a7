"""A double of TensorRT: that of TensorRT for RTX, less what TensorRT has not.

No runtime cache and no configuration at run time; and an engine's validity cannot be asked for.
"""

import tensorrt_rtx as _double

__version__ = _double.__version__
ILogger = _double.ILogger
Runtime = _double.Runtime
TensorIOMode = _double.TensorIOMode
TensorLocation = _double.TensorLocation
ExecutionContextAllocationStrategy = _double.ExecutionContextAllocationStrategy
write_plan = _double.write_plan
