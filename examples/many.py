"""Many requests at once, each steered in its own way: they share a batch and change no other's answer."""

import asyncio

import saegis

BRIDGE = 3800
VALUES = (0.0, 0.4, 0.8)


async def main() -> None:
    async with saegis.AsyncClient() as client:

        async def ask(value: float) -> saegis.Generation:
            return await client.generate(
                messages=[{"role": "user", "content": "Tell me about the train."}],
                steering=[saegis.clamp(BRIDGE, value, unit="max_activation")] if value else [],
                temperature=0.0,
                max_tokens=40,
            )

        answers = await asyncio.gather(*map(ask, VALUES))
        for value, answer in zip(VALUES, answers, strict=True):
            print(f"{value:3.1f} of its maximum: {answer.text}")


asyncio.run(main())
