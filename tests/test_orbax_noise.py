"""What asyncio says of errors that nobody waited for: of ours all, of orbax's and tensorstore's writes nothing."""

import asyncio
import gc
import logging

import pytest

from qwen3_jax.orbax_noise import silence


def forgotten_future(error):
  """As tensorstore's threads set it: no frame has raised the error."""

  async def main():
    asyncio.get_running_loop().create_future().set_exception(error)
    gc.collect()

  asyncio.run(main())


def forgotten_task(error):
  async def fail():
    raise error

  async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()

  asyncio.run(main())


@pytest.mark.parametrize("forgotten, said", [(forgotten_future, False), (forgotten_task, True)])
def test_errors_that_nobody_waited_for(forgotten, said, caplog):
  silence()
  with caplog.at_level(logging.ERROR):
    forgotten(ValueError("No space left on device"))
  assert ("never retrieved" in caplog.text) == said
