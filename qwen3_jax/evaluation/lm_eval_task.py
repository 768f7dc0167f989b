"""A task of lm-evaluation-harness as an evaluator (`pip install 'qwen3_jax[eval]'`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class LmEval:
  task: str  # or a group of tasks, or a tag
  include_path: Path | None = None  # a folder of YAML files of more tasks
  limit: int = 0  # documents of each task; 0: all
  chat_template: bool = False  # prompts become user turns
  max_new_tokens: int | None = None  # in place of the task's own
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `Qwen3LM`

  def manager(self) -> Any:
    """The harness's index of tasks.

    Raises ValueError if the harness is not installed, the folder is not there, or it has no such task.
    """
    if self.include_path is not None and not self.include_path.is_dir():
      raise ValueError(f"{self.include_path}: no such folder")
    manager = _manager(self.include_path)
    if self.task not in manager.all_tasks:
      raise ValueError(f"lm_eval has no task {self.task!r}" + nearest.clause(self.task, manager.all_tasks))
    return manager

  def run(self, model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    """The harness's metrics, those of tasks in a group under the task's name; no rows."""
    manager = self.manager()
    from lm_eval import simple_evaluate

    from qwen3_jax.evaluation.lm_eval_adapter import Qwen3LM

    found = simple_evaluate(
      Qwen3LM(model, tokenizer, **self.options),
      tasks=[self.task],
      task_manager=manager,
      limit=self.limit or None,
      apply_chat_template=self.chat_template,
      gen_kwargs=None if self.max_new_tokens is None else {"max_gen_toks": self.max_new_tokens},
      bootstrap_iters=0,
      log_samples=False,
    )
    assert found is not None  # in the first process
    metrics: dict[str, float] = {}
    for task, values in found["results"].items():
      for key, value in values.items():
        if isinstance(value, int | float) and "stderr" not in key:
          label = key.removesuffix(",none")
          metrics[label if task == self.task else f"{task} {label}"] = float(value)
    return Evaluation(metrics, [])


@functools.cache  # it reads some ten thousand files
def _manager(include_path: Path | None) -> Any:
  try:
    from lm_eval.tasks import TaskManager
  except ImportError:
    raise ValueError("lm_eval tasks need lm-evaluation-harness: pip install 'qwen3_jax[eval]'") from None
  return TaskManager(include_path=None if include_path is None else str(include_path))
