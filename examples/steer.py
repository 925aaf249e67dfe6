"""Find a feature, clamp it, and read the receipt."""

import saegis

with saegis.Client() as client:
    for found in client.search_features("bridge").features[:4]:
        print(f"{found.index:6} {found.label!r}, at most {found.max_activation or 0.0:.1f} in training text")
    bridge = client.get_feature(3800)

    messages = [{"role": "user", "content": "Tell me about the train."}]
    for edits in ([], [saegis.clamp(bridge, 0.8, unit="max_activation")]):
        answer = client.generate(messages=messages, steering=edits, temperature=0.0, max_tokens=48)
        print(f"\n{'clamped' if edits else 'as it is'}: {answer.text}")
        for site in answer.receipt.sites:
            print(f"  {site.site}: {site.edits} edit, {site.tokens_edited} tokens edited")
    print(f"  program {answer.receipt.program_digest[:16]}")
