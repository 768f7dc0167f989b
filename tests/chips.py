"""The TPUs that tests compile for: by turns, or each of them with --every-chip."""

CHIPS = ("v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
