"""The compile report as tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from qwen3_jax.compilation.chips import GIB
from qwen3_jax.compilation.report import Report

_WIDTH = 132  # where the output is no terminal


def console() -> Console:
  return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def print_report(report: Report, out: Console) -> None:
  """Everything of one program. What a compile that did not fit cannot know is left out."""
  mesh = ", ".join(f"{axis}={size}" for axis, size in report["mesh"].items()) or "one device"
  out.print(f"\n[bold]{report['name']}[/bold] on {report['topology']}, {report['devices']} devices ({mesh})")
  out.print(
    f"{report['parameters']:,} parameters, {report['tokens_per_step']:,} tokens per step;"
    f" lowered in {report['lower_seconds']:.1f} s, compiled in {report['compile_seconds']:.1f} s,"
    f" {report['host_peak_bytes'] / GIB:.2f} GiB of host memory"
  )
  out.print(_memory_table(report))
  if report["fits"]:
    out.print(_time_table(report))
    if report["collectives"]:
      out.print(_collectives_table(report))
    if ideal := report["ideal_network_bytes"]:
      out.print(_network_line(report["network_bytes"], ideal))
  if decoding := report.get("decoding"):
    out.print(_decoding_table(decoding))
  if report["largest_buffers"]:
    out.print(_buffers_table(report))
  for note in report.get("notes", ()):
    out.print(f"note: {note}")
  out.print(verdict(report))
  for fix in report.get("fixes", ()):
    fits = "would fit" if fix["would_fit"] else "not enough alone"
    out.print(f"  {-fix['bytes'] / GIB:+.1f} GiB with {fix['change']} (estimate; {fits})")


def verdict(report: Report) -> str:
  """One line: whether it fits, and how fast it could be."""
  hbm = report["hbm"]
  if not report["fits"]:
    return (
      f"[bold red]DOES NOT FIT[/bold red]: {report['overflow_bytes'] / GIB:.2f} GiB per device over the limit"
      f" ({hbm['peak'] / GIB:.2f} of {hbm['limit'] / GIB:.2f} GiB)"
    )
  step = report["predicted_step_s"]
  if "decoding" in report:
    speed = report["tokens_per_step"] / step["scheduled"]
    return (
      f"[bold green]fits[/bold green]: {hbm['peak'] / GIB:.2f} of {hbm['limit'] / GIB:.2f} GiB per device."
      f" {report['decoding']['slots']} sequences of {report['decoding']['max_length']:,} tokens at the roofline:"
      f" {duration(step['scheduled'])} per step, {speed:,.0f} tokens/s, bound by {report['roofline']['binding']}"
    )
  return (
    f"[bold green]fits[/bold green]: {hbm['peak'] / GIB:.2f} of {hbm['limit'] / GIB:.2f} GiB per device."
    f" At the roofline {report['predicted_mfu']:.1%} MFU, bound by {report['roofline']['binding']}:"
    f" {duration(step['overlapped'])} per step if everything overlaps, {duration(step['scheduled'])}"
    f" ({report['predicted_mfu_scheduled']:.1%}) with the network as it is scheduled"
  )


def _network_line(sent: dict[str, float], ideal: dict[str, float]) -> str:
  parts = [
    f"{size(sent[part])} a {part}"
    + (f", {sent[part] / ideal[part]:.2f} times the least possible" if ideal[part] else "")
    for part in ("layer", "step")
  ]
  return f"one device sends {'; '.join(parts)}"


def size(count: float) -> str:
  """Bytes in the largest binary unit that leaves at least 1."""
  for unit in ("B", "KiB", "MiB"):
    if abs(count) < 1024:
      return f"{count:.3g} {unit}"
    count /= 1024
  return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
  return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], out: Console) -> None:
  out.print(_table(title, columns, rows))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
  """The first column is text, the others are numbers."""
  table = Table(title=title, title_justify="left")
  for index, column in enumerate(columns):
    table.add_column(column, justify="left" if index == 0 else "right")
  for row in rows:
    table.add_row(*row)
  return table


def _memory_table(report: Report) -> Table:
  total = report["hbm"]["peak"]
  of_peak = {**report["hbm_categories"], "peak": total}
  rows = [[name.replace("_", " "), size(part), f"{part / total:.1%}"] for name, part in of_peak.items()]
  if report["hbm"].get("host"):
    rows.append(["in host memory", size(report["hbm"]["host"]), ""])
  return _table("HBM per device", ("", "bytes", "of peak"), rows)


def _time_table(report: Report) -> Table:
  flops, times, devices = report["flops_per_step"], report["roofline"], report["devices"]
  model = flops["model"]
  rows = [
    ["compute", duration(times["compute_s"]), f"{flops['compiled'] / devices / 1e12:,.2f} TFLOP"],
    ["  of which model", "", f"{model / devices / 1e12:,.2f} TFLOP"],
    ["  beyond the model", "", f"{flops['recompute'] / model:.1%} of model"],
    ["    of which remat", "", f"{flops['rematerialized'] / model:.1%} of model"],
    ["memory", duration(times["memory_s"]), "upper estimate"],
    ["network", duration(times["network_s"]), f"{size(report['network_bytes']['step'])} sent"],
    ["  waited for", duration(times["waiting_s"]), "by the schedule"],
  ]
  return _table("Roofline, one step of one device", ("", "time", ""), rows)


def _collectives_table(report: Report) -> Table:
  rows = [
    [
      entry["kind"],
      entry["axes"],
      str(entry["group_size"]),
      entry["dtype"],
      " x ".join(map(str, entry["loops"])) + (" (layers)" if entry["per_layer"] else "") or "once",
      f"{entry['count']:,}",
      size(entry["bytes"] / entry["count"]),
      size(entry["bytes"]),
      duration(entry["seconds"]),
      duration(entry["waiting_seconds"]),
    ]
    for entry in report["collectives"]
  ]
  columns = ("collective", "mesh axes", "members", "type", "loops", "count", "each", "a step", "time", "waited")
  return _table("Network, sent by one device", columns, rows)


def _decoding_table(decoding: Report) -> Table:
  rows = [
    [
      f"{bound['context']:,}",
      f"{bound['sequences']:,}",
      f"{bound['tokens_per_second']:,.0f}",
      f"{bound['tokens_per_second_of_one']:,.0f}",
    ]
    for bound in decoding["hbm_bound"]
  ]
  title = f"Decoding, all devices: room for {decoding['cache_tokens']:,} tokens in {decoding['cache_dtype']}"
  columns = ("tokens a sequence", "sequences that fit", "tokens/s, HBM-bound", "of one sequence")
  return _table(title, columns, rows)


def _buffers_table(report: Report) -> Table:
  rows = [[entry["shape"], size(entry["bytes"]), entry["scope"][-80:]] for entry in report["largest_buffers"]]
  return _table("Largest buffers at the peak", ("shape on a device", "bytes", "from"), rows)
