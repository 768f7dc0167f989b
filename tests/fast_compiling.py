"""XLA's flags and caches for tests, whose programs run for milliseconds but take seconds to compile."""

from pathlib import Path

import jax

# Its older emitters, which JAX 0.10 still has, take half the time. They lose nothing but the payloads of NaNs in
# bfloat16; tests/test_checkpoint_faults.py has these saved and restored by a process without the flag.
_OLDER_EMITTERS = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
# Not split for many cores: workers have one each.
FLAGS = f"--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1{_OLDER_EMITTERS}"
CACHE = Path(__file__).parents[1] / ".cache" / "jax"
RUNS_CACHE = CACHE.with_name("jax-runs")  # of processes that are killed, perhaps while they write to it: of a session
