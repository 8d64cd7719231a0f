"""A disconnect is noticed, whatever is being sent at that moment."""

import asyncio

from tpdm.serving.http.streaming import EventStream


def test_a_disconnect_at_the_end_of_a_send_is_noticed():
    async def rest():
        while True:
            yield b"data: 1\n\n"

    async def run():
        gate, sent = asyncio.get_running_loop().create_future(), []

        async def send(message):
            sent.append(message)
            if len(sent) == 2:
                await gate
            await asyncio.sleep(0)

        sending = asyncio.create_task(EventStream(b"first", rest())._send(send))
        while len(sent) < 2:
            await asyncio.sleep(0)
        gate.set_result(None)
        for _ in range(2):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending}, timeout=1)
        assert sending.cancelled()

    asyncio.run(run())
