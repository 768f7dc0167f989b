"""Evaluators, one a file: `Evaluator(...).run(model, tokenizer) -> Evaluation`."""
