"""Runs of `miniature.py:post=none,stage=s1,tiny` that take seconds, for tests of what starts runs."""

from __future__ import annotations

from run_helpers import Material

EXPERIMENT = "experiments/miniature.py"
FORM = "post=none,stage=s1,tiny"
STEPS = 4


def overrides(material: Material, **changes: object) -> list[str]:
  """Flags that make the run smaller still; `changes` write a dot as two underscores."""
  domains = ("code", "documentation", "multilingual")
  settings: dict[str, object] = {
    "tokenizer.path": material.tokenizer,
    "data.cache": material.cache,
    **{f"data.corpora.{domain}.source": f"jsonl:{material.corpus}" for domain in domains},
    "model.num_layers": 1,
    "model.vocab_size": 512,
    "stages.s1.sequence_length": 32,
    "stages.s1.tokens": STEPS * 8 * 32,
    "stages.s1.optimizer.warmup_steps": 0,
    "stages.s1.sample_prompts": (),
    "log_every": 1,
  }
  settings |= {key.replace("__", "."): value for key, value in changes.items()}
  return [f"--config.{key}={value}" for key, value in settings.items()]
