"""Traffic for pictures of the dashboards: callers of three tenants, some of them under policies, who ask the
reference model for some minutes what callers ask, also what is refused."""

import asyncio
import json
import random
import secrets
import time
from contextlib import suppress
from pathlib import Path

import saegis
from saegis_lab.evaluation.experiment import BanFile, ClampFile
from saegis_server.reference import WEIGHTS
from saegis_server.rpc.auth.principals import token_digest

BAN = BanFile.load(WEIGHTS / "eval/ban.json")
CLAMP = ClampFile.load(WEIGHTS / "eval/clamp.json")
#: The tenants, by whether policies steer them.
TENANTS = {"acme": True, "globex": True, "visitors": False}
#: How many callers each tenant has.
CALLERS = 3
_HEAD = """\
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: 1
revision: "1"
match: {{tenants: [{tenants}], models: ["*"]}}
"""
_BAN = """\
rules: [{{id: ban-harm, ban: {{features: [{{sae: polyglot, indices: {features}}}], strength: {strength}}}}}]
allow: [{{id: bridge, ops: [clamp], features: [{{sae: polyglot, index: {landmark}}}], unit: max_activation}}]
"""
_OPEN = "allow: [{id: edits, ops: [clamp]}]\n"
_CONDITION = "if: {{any: [{features}]}}, over: {over}"
_CONDITIONS = """\
rules:
- {{id: noted, mode: audit, when: {{{token}}}, record: {{}}}}
- {{id: stopped, when: {{{answer}}}, stop: {{}}}}
- {{id: refused, when: {{{prompt}}}, refuse: {{message: This service does not write about that.}}}}
"""


class Callers:
    """The tokens of the tenants, and the options of a server that knows them."""

    def __init__(self, folder: Path) -> None:
        """folder: an empty one, for the files that the server needs."""
        self.tokens = {tenant: secrets.token_urlsafe(16) for tenant in TENANTS}
        principals = [
            {"name": tenant, "tenant": tenant, "roles": ["use", "steer"], "token_sha256": token_digest(token)}
            for tenant, token in self.tokens.items()
        ]
        known = {"apiVersion": "saegis.dev/v1", "kind": "Identities", "principals": principals}
        (folder / "identities.yaml").write_text(json.dumps(known), encoding="utf-8")
        ruled = [tenant for tenant, is_ruled in TENANTS.items() if is_ruled]
        ban = _BAN.format(features=list(BAN.features), strength=BAN.strength, landmark=CLAMP.feature)
        self.options = [
            *("--identities", str(folder / "identities.yaml"), "--audit", str(folder / "audit")),
            *(
                "--compile",
                "never",
                "--usage-every",
                "16",
                "--sample-saes",
                "1",
                "--tenant-class",
                "paid=acme,globex",
            ),
            *("--policy", _written(folder / "no-harm", ", ".join(ruled), ban)),
            *("--policy", _written(folder / "watchful", "globex", _conditions())),
            *("--policy", _written(folder / "open", ", ".join(TENANTS.keys() - ruled), _OPEN)),
        ]

    async def ask(self, target: str, seconds: float) -> None:
        """Let all callers ask for so long, more and more of them at once, then fewer."""
        until = time.monotonic() + seconds
        callers = [(tenant, number) for number in range(CALLERS) for tenant in TENANTS]
        await asyncio.gather(
            *(
                self._caller(target, tenant, place, until, seconds / 3.0 * number / CALLERS)
                for place, (tenant, number) in enumerate(callers)
            )
        )

    async def _caller(self, target: str, tenant: str, place: int, until: float, after: float) -> None:
        await asyncio.sleep(after)
        chance, prompts = random.Random(place), _prompts()
        async with (
            saegis.AsyncClient(target, token=self.tokens[tenant]) as client,
            saegis.AsyncClient(target, token="of-nobody") as nobody,  # noqa: S106 - not a secret
        ):
            while time.monotonic() < until - after / 2.0:
                what = chance.random()
                # What is refused is told in the panels; here it is of no interest.
                with suppress(saegis.SaegisError):
                    await _call(nobody if what > 0.98 else client, chance.choice(prompts), what)
                await asyncio.sleep(chance.random())


async def _call(client: saegis.AsyncClient, prompt: str, what: float) -> None:
    """One call: mostly a chat, some of them steered; also edits that policies deny or that name nothing."""
    steering: list[saegis.Edit] = []
    if what < 0.25:
        steering = [saegis.clamp(CLAMP.feature, 1.0, unit="max_activation")]
    elif what < 0.30:
        steering = [saegis.clamp(BAN.features[0], 40.0)]
    elif what < 0.32:
        steering = [saegis.clamp(10**8, 1.0)]
    chat = [{"role": "user", "content": prompt}]
    stream = client.stream(messages=chat, max_tokens=96, steering=steering, seed=int(1e6 * what))
    async for _ in stream:
        if 0.9 < what < 0.93:
            await stream.close()
            return


def _prompts() -> list[str]:
    lines = (WEIGHTS / "eval/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def _conditions() -> str:
    features = ", ".join(f"{{feature: {{sae: polyglot, index: {each}}}, above: 4}}" for each in BAN.features)
    whens = {over: _CONDITION.format(features=features, over=over) for over in ("token", "answer", "prompt")}
    return _CONDITIONS.format(**whens)


def _written(folder: Path, tenants: str, rules: str) -> str:
    """The path of a policy, written."""
    folder.mkdir()
    text = _HEAD.format(name=folder.name, tenants=tenants) + rules
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    return str(folder)
