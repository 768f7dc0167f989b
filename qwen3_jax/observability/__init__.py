"""What a run tells of itself: where its time goes, traces, stacks, logs, other trackers (docs/observability.md)."""
