"""The first token: what rows and conditions do at a model's own beginning-of-sequence token.

It sees nothing before it, so it is the same in every text and says nothing of any; and an SAE has hardly
learnt it, so that a large share of its features fires there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from saegis_server.engine.guard import Guard
from saegis_server.steering.program import SteeringProgram


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Where a text begins with `bos`, that one token is left out, unless the server or a request asks for it.

    bos: the model's own; None for one that has none, all of whose tokens are alike. moved: rows move it, for
    everybody; read: conditions, contrasts and statistics read it.
    """

    bos: int | None = None
    moved: bool = False
    read: bool = False

    def unmoved(self, tokens: Sequence[int], program: SteeringProgram) -> int:
        """How many of the tokens that a text begins with no row moves: 0 or 1."""
        return 0 if self.moved or program.moves_first_token else self._begins(tokens)

    def unread(self, tokens: Sequence[int], guard: Guard) -> int:
        """How many of the tokens that a text begins with no condition reads: 0 or 1."""
        return 0 if guard.reads_first_token else self.left_out(tokens)

    def left_out(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that a text begins with are left out of statistics: 0 or 1."""
        return 0 if self.read else self._begins(tokens)

    def _begins(self, tokens: Sequence[int]) -> int:
        return int(len(tokens) > 0 and tokens[0] == self.bos)
