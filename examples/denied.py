"""What is raised where a policy, a name or a value stands in the way, and what each error says."""

import saegis

ASKED = [{"role": "user", "content": "Tell me about the sea."}]
TRIES: dict[str, list[saegis.Edit]] = {
    "the landmark, within its bounds": [saegis.clamp(3800, 1.0, unit="max_activation")],
    "a feature that the policy redirects": [saegis.clamp(23, 40.0)],
    "a feature that does not exist": [saegis.clamp(10**6, 1.0)],
    "a value that is no number": [saegis.clamp(3800, float("nan"))],
}

with saegis.Client() as client:
    for name, edits in TRIES.items():
        try:
            answer = client.generate(messages=ASKED, steering=edits, temperature=0.0, max_tokens=24)
        except saegis.PermissionDenied as error:  # a policy or a role: asking again does not help
            print(f"{name}: denied: {error.message}")
        except (saegis.NotFound, saegis.InvalidArgument) as error:  # the request: mend the field
            print(f"{name}: {error.violations[0].field}: {error.violations[0].description}")
        except (saegis.ResourceExhausted, saegis.Unavailable) as error:  # the moment: wait, and ask again
            print(f"{name}: not now; again in {error.retry_after or 1.0} s")
        else:
            rules = ", ".join(f"{rule.policy}/{rule.rule}" for rule in answer.receipt.rules)
            print(f"{name}: allowed, under {rules or 'no rules'}")
