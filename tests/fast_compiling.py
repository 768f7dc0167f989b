"""XLA flags for tests, whose programs run for milliseconds but take seconds to compile."""

import jax

# Its older emitters, which JAX 0.10 still has, take half the time. They lose nothing but the payloads of NaNs in
# bfloat16; tests/test_checkpoint_faults.py has these saved and restored by a process without the flag.
_OLDER_EMITTERS = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
FLAGS = f"--xla_backend_optimization_level=0{_OLDER_EMITTERS}"
