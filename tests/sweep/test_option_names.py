"""The options of all commands: one name has one meaning, one meaning one name, and a set of words is a set.

Names in the plural take a list with commas; others that may be given several times say "Again for another".
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import pytest
import typer
from typer.testing import CliRunner

from saegis_lab.cli.app import app

#: What each name means, in whatever command it stands. A new option takes the name here that means the same.
MEANINGS = {
    "--ablate": "an edit that sets a feature to 0",
    "--add": "an edit that adds to a feature",
    "--aligned": "the language in which a model refuses",
    "--architecture": "how an SAE's features are made sparse",
    "--as-rule": "the id of a policy's rule that is printed",
    "--attack": "whether a filter that is made is attacked too",
    "--audit": "the audit log to keep",
    "--audit-fsync": "when audit records are forced to the disk",
    "--audit-identity-per-minute": "how many failed authentications are recorded",
    "--audit-interval": "how often audit records are forced to the disk",
    "--audit-keep": "how many closed files of the audit log stay",
    "--audit-key-file": "the key of the audit log's chain",
    "--audit-mask": "what audit records hide",
    "--audit-max-bytes": "the size of an audit log's file",
    "--audit-on-failure": "what happens to requests while the audit log cannot be written",
    "--audit-prompts": "whether prompts are written into the audit log",
    "--audit-queue": "audit records that may wait",
    "--away": "texts that a direction points away from",
    "--ban": "an edit that bans a feature",
    "--ban-matching": "bans of all features that words find",
    "--baseline": "the rates that features' use is compared with",
    "--batch": "activations a step of training",
    "--tensor-parallel-size": "how many processes share each layer",
    "--batch-invariant": "whether each sequence takes steps of its own",
    "--by": "which features come first",
    "--ca": "the authorities that a client trusts",
    "--calibrate-on": "the languages in which a ban's strength must be enough",
    "--cap": "an edit that caps a feature",
    "--chat": "whether the text is a user's message",
    "--checkpoint-every": "how often training saves its state",
    "--chosen-from": "the languages that a ban's features are chosen from",
    "--clamp": "an edit that clamps a feature",
    "--client-ca": "the authorities of the clients' certificates",
    "--client-cert": "a caller's certificate",
    "--client-key": "a caller's private key",
    "--compile": "when the forward pass is compiled",
    "--concurrency": "requests side by side",
    "--config": "the file of settings",
    "--console": "whether the HTTP port has pages for people",
    "--context": "how long a text may be before it is cut",
    "--dead-after": "when an SAE's feature counts as dead",
    "--decision": "the id of a policy decision",
    "--device": "what the model runs on",
    "--direction": "the file of a refusal direction",
    "--direction-state": "where uploaded directions survive a restart",
    "--directions": "directions that the operator ships",
    "--dry-run": "whether nothing is changed",
    "--dtype": "the model's dtype",
    "--engine": "what runs the model",
    "--examples": "how many decisions of a kind are shown",
    "--every-token": "whether a direction is made of every token",
    "--expect-head": "the hash of an audit record that must be there",
    "--explained-by": "the model whose explanations are taken over",
    "--fair-seconds": "how long a place is kept for a tenant",
    "--fair-share": "the share of a full queue that a caller may fill",
    "--fair-slots": "places kept for tenants that had one lately",
    "--feature": "one feature: that which is clamped, or looked at",
    "--feature-count": "how many features an SAE gets",
    "--features": "the features of a ban",
    "--for-model": "the model that a policy is for",
    "--force": "whether what is there is replaced",
    "--grace": "how long running requests may take to end",
    "--groups": "the sizes of Matryoshka groups",
    "--harmful": "whether harmful texts are the wanted ones",
    "--harvest": "the folder of activations that an SAE is trained on",
    "--held-out": "texts to measure an SAE on",
    "--held-out-share": "the share of the texts to measure an SAE on",
    "--host": "the address to listen on",
    "--html": "the file for a page that shows the result",
    "--http-host": "the address of the OpenAI-compatible port",
    "--http-origin": "where web pages come from that may use the HTTP port",
    "--http-port": "the OpenAI-compatible port",
    "--identities": "the file of those who may call",
    "--image": "a picture that the model is shown",
    "--insecure": "whether a connection may do without encryption",
    "--json": "whether programs are to read what is printed",
    "--k": "features active at a token",
    "--key": "the private key that signs a bundle",
    "--kind": "the kind of audit records",
    "--kv-memory": "memory for the sequences that run",
    "--l0-coefficient": "the weight of the L0 penalty",
    "--l1-coefficient": "the weight of the L1 penalty",
    "--label": "the label of the wanted texts",
    "--languages": "the languages in which a filter is chosen",
    "--last": "how many records are shown, from the end",
    "--learning-rate": "the step length of training",
    "--limit": "what a caller may have",
    "--log-format": "how the server's log is written",
    "--log-level": "what the server's log tells",
    "--markdown": "the file for a table in Markdown",
    "--max-back": "the share of the harm that an attack may bring back",
    "--max-kl": "the divergence that a ban must stay under",
    "--max-lost": "the share of benign answers that a filter may refuse or stop",
    "--max-message-bytes": "the largest request",
    "--max-model-len": "tokens of prompt and completion together",
    "--max-picture-bytes": "the largest file of a picture",
    "--max-picture-pixels": "the most pixels of a picture",
    "--max-picture-side": "the longest side of a picture",
    "--max-pictures": "pictures of a request",
    "--max-num-seqs": "sequences that share a batch",
    "--max-perplexity": "the perplexity that answers under a ban or a filter must stay under",
    "--max-q": "the share of features that may be found by chance",
    "--max-tokens": "tokens of an answer",
    "--max-worst": "the share of the harm that an attack may bring back in the worst sample",
    "--measure": "whether a filter that is made is measured on a server",
    "--metrics-host": "the address of the Prometheus endpoint",
    "--metrics-port": "the port of the Prometheus endpoint",
    "--min-coverage": "the share of a bundle that its cases must reach",
    "--min-p": "sampling: the least share of the likeliest token's probability",
    "--min-precision": "the least precision of a chosen feature",
    "--model": "the language model, by path or hub id",
    "--name": "what the model is called",
    "--norm-scaling": "the norm scaling factor of an SAE",
    "--of-class": "the class of tenants that is told of",
    "--once": "that a live table is printed once",
    "--only": "the models that are measured",
    "--out": "where the result is written",
    "--part": "what of it is measured",
    "--parts": "whether the parts of a policy are tried too",
    "--phase": "which tokens count",
    "--plot": "where the result is drawn",
    "--policy": "a bundle to put in force",
    "--policy-key": "a public key that must have signed a bundle",
    "--policy-state": "where policies survive a restart",
    "--port": "the port to listen on",
    "--precision": "the dtype of an SAE's matrix products",
    "--preset": "a program that is listed as a model",
    "--principal": "what logs call a caller",
    "--prompts": "the prompts to ask",
    "--prompts-per-language": "how many prompts of each kind are asked in a language",
    "--queue-limit": "sequences that may wait",
    "--raw": "whether texts carry their special tokens",
    "--read-first-token": "whether conditions read a text's first token",
    "--read-moves": "whether it is shown how far each token was moved",
    "--read-prompt": "whether the prompt's tokens are shown with what was read of them",
    "--ready-file": "the file that says where a server serves",
    "--receipt": "whether the whole receipt is shown",
    "--recipe": "other numbers of a filter's recipe",
    "--redirect": "an edit that writes one feature where another is active",
    "--reflection": "whether clients may read the contract",
    "--refresh": "how often a live table is read",
    "--refusal-examples": "prompts with refusals, from which a refusal direction is made",
    "--refusal-feature": "a feature of refusals",
    "--replay": "the audit log whose decisions are made again",
    "--reuse": "how often an activation is trained on",
    "--revision": "the revision of a policy that is made",
    "--role": "what a caller may do",
    "--rounds": "how often each side is measured",
    "--rows": "room for rows of a kind",
    "--rule": "the id of a rule",
    "--sae": "an SAE, by path or hub id",
    "--sae-id": "an SAE, by its id on the server",
    "--sample-saes": "how often metrics measure the SAEs",
    "--samples": "answers to a prompt",
    "--save": "where the rates of features are written",
    "--scale": "an edit that scales a feature",
    "--scorer": "what scores answers",
    "--seed": "what random choices are drawn from",
    "--serial": "the serial of a policy that is made",
    "--server": "the server to call",
    "--shadow": "whether a bundle is evaluated without acting",
    "--shots": "earlier turns with harmful answers",
    "--site": "a place in the forward pass",
    "--split-seed": "how texts are split, where that is not the SAE's seed",
    "--stall": "how long the event loop may be stuck",
    "--steer-first-token": "whether rows move a text's first token",
    "--stop": "a text that ends an answer",
    "--stream": "whether text is printed as it comes",
    "--strength": "the strength of a ban",
    "--strengths": "the strengths of a ban to measure",
    "--system": "the system message",
    "--target": "the share of its harm that a ban may leave",
    "--temperature": "sampling: the temperature",
    "--temperatures": "sampling: the temperatures that are measured",
    "--tenant": "whose policies concern a caller",
    "--tenant-class": "the tenants that metrics tell apart",
    "--texts": "the texts to read activations of",
    "--timeout": "a call's deadline",
    "--tls-cert": "the server's certificate",
    "--tls-key": "the server's private key",
    "--token-file": "the file of a caller's token",
    "--tokens": "activations to train on",
    "--top": "how many features are shown or chosen",
    "--top-k": "sampling: the likeliest tokens, by number",
    "--top-p": "sampling: the likeliest tokens, by share",
    "--towards": "texts that a direction points to",
    "--traces": "where spans of requests are sent",
    "--unix": "the Unix socket to listen on",
    "--unmatched-policies": "what a policy that concerns nobody is",
    "--unmatched-saes": "what an SAE of another model or place is",
    "--usage-every": "how often the use of all features is counted",
    "--usage-state": "where the use of features is kept",
    "--use": "what a request asks for beyond the ordinary",
    "--values": "the values of a clamp to measure",
    "--watch": "a feature whose value is reported",
    "--watch-feature": "a feature that metrics count",
    "--watched": "that watched features are told of",
    "--window": "how long the time is that is told of",
    "--with": "a text that has what is looked for",
    "--with-file": "texts that have what is looked for",
    "--with-image": "a picture that has what is looked for",
    "--without": "a text that lacks what is looked for",
    "--without-file": "texts that lack what is looked for",
    "--without-image": "a picture that lacks what is looked for",
    "--wordings": "the file of other wordings of prompts",
    "--words": "the name of a word list",
}
#: Names whose value is written in several ways, each for a reason.
VARIED = {
    "--out": "a file or a directory, as the result is one",
    "--sae": "with an id of its own where policies name several",
    "--feature": "a file of a clamp too where it is evaluated",
    "--features": "targets where a server is asked, indices alone where an SAE's file is read",
}
#: How text is written that is not one of a set of words. A set of words is an enumeration.
FREE = """
    ADDRESS BYTES_OR_SHARE CLASS=TENANT,... CODE CODE,CODE... DEVICE DURATION FILE FILE|INDEX,INDEX...
    FILE|MODULE:FUNCTION
    FILE|TARGET HASH ID KIND=NUMBER FILE|TARGET,TARGET... ID=FACTOR LABEL NAME NAME=NUMBER NUMBER,NUMBER...
    PATH_OR_HUB_ID SAE:INDEX SITE SIZE,SIZE... STRENGTH,STRENGTH... TARGET TARGET=FACTOR
    TARGET=TO:FACTOR[:STRENGTH[:THRESHOLD]] TARGET=VALUE TARGET[=STRENGTH] TEXT VALUE,VALUE...
    NAME=FILE ORIGIN WORDS[=STRENGTH] WORD[=VALUE] [ID=]FOLDER [ID=]PATH_OR_HUB_ID POINTER URL
"""


class Option(NamedTuple):
    """An option of a command: the type of one value, and how that is written."""

    command: tuple[str, ...]
    name: str
    kind: Any
    metavar: str | None


def _options(command: Any, path: tuple[str, ...] = ()) -> Iterator[Option]:
    for name, each in getattr(command, "commands", {}).items():
        yield from _options(each, (*path, name))
    for each in command.params if path else ():
        if each.param_type_name == "option":
            kind = each.type_descriptor.annotation
            yield Option(path, each.opts[0], (get_args(kind) or (kind,))[0], each.metavar)


OPTIONS = tuple(_options(typer.main.get_command(app)))
CHOICES = [each for each in OPTIONS if issubclass(each.kind, enum.Enum)]


def test_every_name_has_its_meaning_and_every_meaning_one_name() -> None:
    assert {each.name for each in OPTIONS} == set(MEANINGS)
    assert len(set(MEANINGS.values())) == len(MEANINGS)


def test_a_name_takes_the_same_kind_of_value_in_every_command() -> None:
    found: dict[str, dict[tuple[Any, str | None], list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in OPTIONS:
        found[each.name][each.kind, each.metavar].append(" ".join(each.command))
    unlike = {name: dict(kinds) for name, kinds in found.items() if len(kinds) > 1}
    assert unlike.keys() == VARIED.keys(), unlike


def test_text_that_is_not_free_is_one_of_a_set_of_words() -> None:
    assert [each for each in OPTIONS if each.kind is str and each.metavar not in FREE.split()] == []


@pytest.mark.parametrize("option", CHOICES, ids=lambda each: " ".join((*each.command, each.name)))
def test_a_word_outside_the_set_is_an_error_that_lists_the_set(option: Option) -> None:
    given = [*option.command, option.name, "no-such-word"]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert option.name in told
    assert "no-such-word" in told
    assert all(f"'{each.value}'" in told for each in option.kind)
