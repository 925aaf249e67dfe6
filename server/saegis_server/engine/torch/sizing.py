"""Sizing: how many slots of how many tokens go into the memory that they may take, before any is taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.amounts import Portion, in_units
from saegis_server.engine.torch.slots import SPARE_PLACES, SPARE_SLOTS, Slots
from saegis_server.engine.torch.step import SMALLEST
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity

#: How many sequences run at once where nobody asks for a number and there is memory for them.
USUAL_SLOTS = 16
#: Down to how many tokens the context is lessened for the sake of further slots.
USUAL_LENGTH = 2048
#: With less of a context than this, or the model's own, nothing is served.
LEAST_LENGTH = 64
#: The fewest slots that a step runs on.
FEWEST_SLOTS = SMALLEST
#: Texts that are read beside those in slots, with a cache of their own: for a score, plainly and as steered.
APART = 2
#: How much of what is free after the weights is taken where nobody says: others share a CPU's memory.
SHARE_OF_CPU, SHARE_OF_GPU = 0.5, 0.85


@dataclass(frozen=True, slots=True)
class Needs:
    """What slots take of a device, in bytes: `token` for each place of a text, all layers together, `slot`
    for each slot besides, and `fixed` once."""

    token: int
    slot: int
    fixed: int

    def of(self, count: int, length: int) -> int:
        """What `count` slots of `length` tokens take, with what is spare and what is read apart."""
        slots, places = count + SPARE_SLOTS, length + SPARE_PLACES
        return self.fixed + slots * (self.slot + places * self.token) + APART * length * self.token

    def longest(self, count: int, budget: int) -> int:
        """The most tokens of `count` slots that take at most `budget`; below 1 if there are none."""
        return (budget - self.of(count, 0)) // (self.of(count, 1) - self.of(count, 0))

    def most(self, length: int, budget: int) -> int:
        """The most slots of `length` tokens that take at most `budget`; below 1 if there are none."""
        return (budget - self.of(0, length)) // (self.of(1, length) - self.of(0, length))


@dataclass(frozen=True, slots=True)
class Size:
    """So many slots of so many tokens."""

    count: int
    length: int

    def __str__(self) -> str:
        return f"{self.count} sequences of {self.length} tokens"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator asks for: memory, sequences at once, tokens of each. None leaves it to what fits."""

    memory: Portion | None = None
    count: int | None = None
    length: int | None = None


def fit(needs: Needs, budget: int, context: int, count: int | None = None, length: int | None = None) -> Size:
    """The slots to make of `budget` bytes, for a model whose context has `context` tokens.

    What is asked for is given as it is. Else there are USUAL_SLOTS slots of the model's whole context; where
    those do not fit, the context is lessened down to USUAL_LENGTH, then the slots, then the context again.
    Raises ValueError for what does not fit, with both numbers and what would.
    """
    found = _largest(needs, budget, context, count, length)
    if found is not None:
        return found
    least = Size(count or FEWEST_SLOTS, length or min(context, LEAST_LENGTH))
    asked = {"max_num_seqs": count, "max_model_len": length}
    named = " and ".join(f"{name} {number}" for name, number in asked.items() if number is not None)
    takes = f"{least} take {in_units(needs.of(least.count, least.length))}"
    others = ((count, None), (None, length), (None, None))
    fitting = [_largest(needs, budget, context, *other) for other in others if other != (count, length)]
    would = " or ".join(dict.fromkeys(str(each) for each in fitting if each is not None))
    raise ValueError(
        f"{f'{named}: ' if named else ''}{'' if count and length else 'even '}{takes}, and "
        f"{in_units(budget)} may be taken; "
        + (f"{would} would fit" if would else "nothing fits: give more kv_memory, or serve a smaller model")
    )


def _largest(needs: Needs, budget: int, context: int, count: int | None, length: int | None) -> Size | None:
    """The largest size that fits and is as asked for; None if there is none."""
    usual = min(context, USUAL_LENGTH) if length is None else length
    slots = USUAL_SLOTS if count is None else count
    if count is None and needs.of(slots, usual) > budget:
        slots = max(FEWEST_SLOTS, _steady(needs.most(usual, budget), 2))
    tokens = length or _steady(min(context, needs.longest(slots, budget)), 4, context)
    if tokens < min(context, LEAST_LENGTH, usual) or needs.of(slots, tokens) > budget:
        return None
    return Size(slots, tokens)


def _steady(number: int, bits: int, exact: int = 0) -> int:
    """A number with all but its first bits zero, unless it is `exact`: what fits into free memory varies a
    little from start to start, and a step of another size would be compiled again."""
    if number <= 0 or number == exact:
        return max(number, 0)
    dropped = max(0, number.bit_length() - bits)
    return number >> dropped << dropped


def needs_of(model: PreTrainedModel, sites: tuple[Site, ...], capacity: Capacity) -> Needs:
    """What slots of a model take, by the tensors that `Slots` makes, of which none is allocated here."""

    def takes(slots: int, places: int) -> int:
        count, length = slots - SPARE_SLOTS, places - SPARE_PLACES
        held = Slots(model, sites, count, length, capacity, device="meta")
        return sum(tensor.nbytes for tensor in {id(each): each for each in tensors_in(held)}.values())

    first, longer, more = takes(2, 2), takes(2, 3), takes(3, 2)
    token = (longer - first) // 2
    return Needs(token, more - first - 2 * token, 3 * first - 2 * more)


def tensors_in(held: object) -> Iterator[Tensor]:
    """The tensors that an object of the engine holds, however deep."""
    inner: Any = ()
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping):
        inner = held.values()
    elif isinstance(held, list | tuple):
        inner = held
    elif is_dataclass(held):
        inner = [getattr(held, field.name) for field in fields(held)]
    elif type(held).__module__.startswith(__name__.partition(".")[0]):
        inner = vars(held).values()
    yield from chain.from_iterable(map(tensors_in, inner))
