"""An answer as it is written, with a feature's value at each token, before and after the edits."""

import saegis

BRIDGE = 3800

with saegis.Client() as client:
    stream = client.stream(
        messages=[{"role": "user", "content": "How do I visit the Golden Gate Bridge?"}],
        steering=[saegis.scale(BRIDGE, 0.5)],
        watch=[saegis.watch(BRIDGE)],
        temperature=0.0,
        max_tokens=48,
    )
    with stream:  # leaving the block early ends the work on the server
        for chunk in stream:
            for watched in chunk.watched:
                for before, after in zip(watched.before, watched.after, strict=True):
                    print(f"{before:8.2f} -> {after:6.2f}  {chunk.text!r}")
    final = stream.final
    print(f"{final.usage.completion_tokens} tokens, ended by {final.outcomes[0].finish_reason.value}")
