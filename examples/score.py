"""What an edit does to how likely a conversation is: perplexity with it and without, and where they part."""

import saegis

BRIDGE = 3800
TALKS = (
    ("How do I visit the Golden Gate Bridge?", "The Golden Gate Bridge stands in San Francisco."),
    ("Tell me about the train.", "The train is long. The train goes to the city."),
)

with saegis.Client() as client:
    print("   plain  banned     KL  most of it at")
    for asked, answered in TALKS:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        score = client.score(messages=messages, steering=[saegis.ban(BRIDGE, strength=1.0)])
        most = max(range(len(score.divergences)), key=score.divergences.__getitem__)
        token = client.detokenize(score.token_ids[most + 1 : most + 2])
        numbers = f"{score.plain_perplexity:8.2f}{score.perplexity:8.2f}{score.divergence:7.3f}"
        print(f"{numbers}  {token!r}, token {most + 1}" if score.divergence else f"{numbers}  no token")
