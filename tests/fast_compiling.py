"""XLA flags for tests, whose programs run for milliseconds but take seconds to compile."""

# Without its fusion emitters (a flag of JAX 0.10) XLA compiles three times as fast, but fingerprints of the same array
# on two meshes then differ (tests/test_checkpoint_faults.py): what is compiled so is not to be trusted.
FLAGS = "--xla_backend_optimization_level=0"
