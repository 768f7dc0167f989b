"""XLA flags for tests, whose programs run for milliseconds but take seconds to compile."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  FLAGS += " --xla_cpu_use_fusion_emitters=false"  # a third of the time; later releases do not know the flag
