"""The display of answers: the receipt, the usage and the watched values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from saegis.cli.output import titled

if TYPE_CHECKING:
    from saegis import AppliedRule, PhaseTokens, Receipt, TargetTokens, Usage, Watched

_SHOWN_DIGITS = 16


def receipt_line(receipt: Receipt, usage: Usage) -> Text:
    """The receipt in one line: whether and how the answer was steered, and how long it took."""
    if usage.steered_tokens is None:
        steering = "steered" if receipt.steered else "no token moved"
    elif usage.steered_tokens:
        edits, bans = sum(site.edits for site in receipt.sites), sum(site.bans or 0 for site in receipt.sites)
        fired = sum(site.bans_fired or 0 for site in receipt.sites)
        largest = max((site.largest_relative_norm or 0.0 for site in receipt.sites), default=0.0)
        steering = (
            f"steered {usage.steered_tokens} of {usage.total_tokens} tokens: {edits} edits, {bans} bans "
            f"(fired {fired} times), largest move {largest:.2f} of the norm"
        )
    elif any(site.edits or site.rules or site.bans for site in receipt.sites):
        steering = "steering in force, no token moved"
    else:
        steering = "unsteered"
    timings = receipt.timings
    seconds = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds
    program = f" · program {receipt.program_digest[:_SHOWN_DIGITS]}" if receipt.program_digest else ""
    return Text(
        f"[{steering}{_by(receipt)} · {usage.prompt_tokens} + {usage.completion_tokens} tokens "
        f"in {seconds:.2f} s{program}]",
        style="dim",
    )


def _by(receipt: Receipt) -> str:
    """Which of the operator's rules are in force, as far as the policies show them."""
    if not receipt.ruled:
        return ""
    names = [rule.name for rule in receipt.rules if rule.mode == "enforce"]
    return f" · by the operator's {', '.join(names) or 'rules'} ({receipt.policy_revision})"


def receipt_table(receipt: Receipt, usage: Usage) -> Table:
    """The whole receipt, one row for each site."""
    moves = ("mean move", "largest move")
    numbers = ("edits", "rules", "bans", "watches", "tokens edited", "bans fired", *moves)
    table = titled("receipt", ("site", *numbers), numbers)
    for site in receipt.sites:
        counts = (site.edits, site.rules, site.bans, site.watches, site.tokens_edited, site.bans_fired)
        moved = (site.mean_relative_norm, site.largest_relative_norm)
        told = [
            *("" if count is None else str(count) for count in counts),
            *("" if move is None else f"{move:.3f}" for move in moved),
        ]
        table.add_row(Text(site.site), *told)
    timings = receipt.timings
    decision = f" · decision {receipt.decision_id}" if receipt.decision_id else ""
    decision += f" · trace {receipt.trace_id}" if receipt.trace_id else ""
    table.caption = Text(
        f"model {receipt.model} · steered: {'yes' if receipt.steered else 'no'} · "
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, "
        f"{'how many is not told' if usage.steered_tokens is None else usage.steered_tokens} steered\n"
        f"program {receipt.program_digest or 'not told'}\n"
        f"policy {receipt.policy_revision or 'none'}{decision} · queue {timings.queue_seconds:.3f} s, "
        f"prefill {timings.prefill_seconds:.3f} s, decode {timings.decode_seconds:.3f} s"
    )
    return table


def rules_table(receipt: Receipt) -> Table:
    """The operator's rules that applied with labels and reasons, as far as the policies show them.

    Numbers of tokens are of the prompt and of the completions.
    """
    columns = ("rule", "does", "mode", "acted on tokens", "its condition held", "features", "reason")
    table = titled("the operator's rules", columns, ("acted on tokens",))
    for rule in receipt.rules:
        labels = ", ".join(rule.labels) or "not told"
        cells = (rule.name, rule.action, str(rule.mode), _phases(rule.acted), _held(rule))
        table.add_row(*map(Text, (*cells, labels, rule.reason or "not told")))
    if not receipt.rules:
        table.add_row(Text("not told"))
    elif any(rule.acted or rule.held for rule in receipt.rules):
        table.caption = "tokens of the prompt + of the completions"
    return table


def _held(rule: AppliedRule) -> str:
    """What came of a rule's condition."""
    if not rule.conditional:
        return "has none"
    told = f"at {_phases(rule.held) if rule.held else rule.tokens} tokens"
    if rule.first_held is not None and rule.first_held >= 0:
        told += f", first at {rule.first_held}"
    return told + (f"; ended {rule.stopped}" if rule.stopped else "")


def fired_table(receipt: Receipt) -> Table:
    """What acted on which feature, by whose wish, and which features of conditions were active: the tokens of
    the prompt and of the completions. What was counted and never happened is only numbered."""
    table = titled(
        "what fired", ("site", "feature", "does", "by", "prompt", "completions"), ("prompt", "completions")
    )
    rows = [(edit.target, edit.operation, "the request") for edit in receipt.edits]
    for rule in receipt.rules:
        rows += [(target, rule.action, rule.name) for target in rule.targets]
        rows += [(target, "is active", f"condition of {rule.name}") for target in rule.readings]
    quiet = 0
    for target, does, by in rows:
        tokens = target.tokens
        if tokens is not None and not tokens.total:
            quiet += 1
            continue
        counts = ("not counted", "") if tokens is None else (str(tokens.prompt), str(tokens.completion))
        table.add_row(*map(Text, (target.site, _target(target), does, by, *counts)))
    if quiet:
        table.caption = f"{quiet} more at no token"
    return table


def _target(target: TargetTokens) -> str:
    """A feature with its label, or a direction."""
    if target.index is None:
        return f"direction {target.direction_name or target.direction[:_SHOWN_DIGITS]}"
    return f"{target.sae}:{target.index}{f'  {target.label}' if target.label else ''}"


def _phases(tokens: PhaseTokens | None) -> str:
    return "-" if tokens is None else f"{tokens.prompt} + {tokens.completion}"


def watched_table(names: Sequence[str], watched: Sequence[Watched]) -> Table:
    """One completion's watched values, in feature units: mean and largest, before and after the edits, and,
    if the request has own edits of the target, the values that they set."""
    phases = ("before", "set to", "after") if any(watch.set_to for watch in watched) else ("before", "after")
    numbers = ("tokens", *(f"{figure} {phase}" for figure in ("mean", "max") for phase in phases))
    table = titled("watched", ("feature", *numbers), numbers)
    for readings in watched:
        values = {"before": readings.before, "set to": readings.set_to, "after": readings.after}
        means = [_figure(sum(values[name]) / max(len(values[name]), 1), values[name]) for name in phases]
        largest = [_figure(max(values[name], default=0.0), values[name]) for name in phases]
        table.add_row(Text(names[readings.watch]), str(len(readings.before)), *means, *largest)
    if "set to" in phases:
        table.caption = "after: what the whole activation reads, so it need not be what was set"
    return table


def _figure(figure: float, of: Sequence[float]) -> str:
    return f"{figure:.2f}" if of else "-"
