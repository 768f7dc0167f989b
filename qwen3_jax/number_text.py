"""Numbers as people read them."""

from __future__ import annotations


def compact(number: float) -> str:
  """1234567 as "1.23M"."""
  for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(number) >= 0.9995 * limit:  # 999,600 rounds to 1M, not to 1000k
      scaled = number / limit
      return f"{scaled:.3g}{suffix}" if abs(scaled) < 999.5 else f"{scaled:.0f}{suffix}"
  return f"{number:.3g}"


def duration(seconds: float) -> str:
  """90 as "1m 30s"."""
  if seconds < 10:
    return f"{seconds:.1f}s"
  whole = round(seconds)
  days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
  if days:
    return f"{days}d {hours}h"
  if hours:
    return f"{hours}h {minutes:02}m"
  return f"{minutes}m {whole % 60:02}s" if minutes else f"{whole}s"
