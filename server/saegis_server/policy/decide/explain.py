"""Explanations: a decision in words, with what only the server knows."""

from __future__ import annotations

from collections.abc import Iterator

from saegis.explanation import denial_line, explanation
from saegis_server.policy.decide.decision import Decision


def explain(decision: Decision) -> list[str]:
    """Who decided, why it is denied or which rules act, and what rules that do not act would deny.

    For the operator: it shows reasons and labels, whatever a policy lets others know.
    """
    return explanation(decision, decision.digest, _further(decision))


def _further(decision: Decision) -> Iterator[str]:
    for denial in decision.would_deny:
        yield f"  would be denied by {denial_line(denial)}"
    for site, program in decision.program.sites.items():
        counts = {
            "own edits": len(program.edits),
            "rules": len(program.rules),
            "bans": len(program.bans),
            "readings": len(program.guards),
        }
        amounts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        if not amounts:
            continue
        bound = program.max_relative_norm
        moved = "" if bound is None else f"; own edits move a token by at most {bound:g} of its norm"
        yield f"  at {site}: {amounts}{moved}"
    if decision.guard.hold_back:
        after = decision.guard.hold_back - 1
        more = f", and {after} after them," if after else ""
        yield f"  text is told only once its tokens{more} have been judged"
    if decision.guard.reads_first_token:
        yield "  conditions read the first token too"
    if decision.program.moves_first_token:
        yield "  rows move the first token too"
