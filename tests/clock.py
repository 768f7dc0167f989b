"""A clock that a test moves by hand."""


class Clock:
  """In place of a module's `time`; stands still unless told to go on."""

  def __init__(self):
    self.now = 5000.0

  def monotonic(self) -> float:
    return self.now

  def time(self) -> float:
    return 1e9 + self.now

  def sleep(self, seconds: float) -> None:
    self.now += seconds
