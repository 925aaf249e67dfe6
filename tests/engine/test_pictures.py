"""Models that see: their answers about pictures are Transformers', plain and steered, alone and beside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from saegis_server.engine.api import FieldError, GenerationRequest, SamplingParams
from saegis_server.engine.pictures import Placed, Shown, misplaced
from saegis_server.engine.torch.build import build_step, make_ready
from saegis_server.engine.torch.loading import ModelLoadError, load_model
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.step import Step
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, clamp
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import hooked, seeing, tiny
from tests.engine.serving import Answer
from tests.steering import cases
from tests.tiers import few

SEEDS = few(range(5), 1)
SITE = Site.parse("layers.1.resid_post")


def serve(model: seeing.Seeing) -> Step:
    """A step of a model, built as a start builds it and compared with Transformers."""
    sites = {site: frozenset((Norm.NONE,)) for site in tiny.SITES}
    step = build_step(model.loaded, sites, Wishes(count=6, length=192), Capacity(), False, lambda *_: None)
    make_ready(step, lambda *_: None, False)
    return step


def wanted(
    model: seeing.Seeing, prompt: seeing.Prompted, tokens: int, program: SteeringProgram = UNSTEERED
) -> tuple[list[int], Tensor]:
    """Transformers' greedy answer and the gaps between its two best logits, a whole pass for each token."""
    made, gaps = list(prompt.tokens), []
    for _ in range(tokens):
        handles = hooked.hook_program(model.model, program)
        logits = model.model(input_ids=torch.tensor([made]), **prompt.given, use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        best = logits.topk(2)
        gaps.append(best.values[0] - best.values[1])
        made.append(int(best.indices[0]))
    return made[len(prompt.tokens) :], torch.stack(gaps)


def ask(
    engine: tiny.RunningEngine, name: str, prompt: seeing.Prompted, program: SteeringProgram = UNSTEERED
) -> Answer:
    """Ask for a greedy answer of 8 tokens."""
    answer = Answer()
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    request = GenerationRequest(name, tuple(prompt.tokens), sampling, program, pictures=prompt.pictures)
    engine.engine.submit(request, answer)
    return answer


def prompts(model: seeing.Seeing, seed: int) -> list[seeing.Prompted]:
    """Prompts with 0, 1 and 3 pictures of several shapes, so long that chunks end within pictures."""
    shapes = [(24, 20), (16, 40), (50, 17)]
    made = [seeing.picture(10 * seed + number, *shape) for number, shape in enumerate(shapes)]
    return [seeing.prompted(model, seed, made[:count]) for count in (0, 1, 3)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", seeing.FAMILIES)
@torch.inference_mode()
def test_answers_about_pictures_are_transformers_own_alone_and_in_company(family: str, seed: int) -> None:
    model = seeing.make(family, seed)
    asked = prompts(model, seed)
    expected = [wanted(model, prompt, 8) for prompt in asked]
    with tiny.RunningEngine(serve(model)) as engine:
        for number, (prompt, (tokens, gaps)) in enumerate(zip(asked, expected, strict=True)):
            assert not hooked.differs(ask(engine, f"alone {number}", prompt).wait().tokens(), tokens, gaps)
        answers = [ask(engine, f"beside {number}", prompt) for number, prompt in enumerate(asked * 2)]
        for answer, (tokens, gaps) in zip(answers, expected * 2, strict=True):
            assert not hooked.differs(answer.wait().tokens(), tokens, gaps)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", few(seeing.FAMILIES, 1))
@torch.inference_mode()
def test_edits_and_bans_at_pictures_are_eager_hooks_and_move_no_neighbour(family: str, seed: int) -> None:
    model = seeing.make(family, seed)
    asked = prompts(model, seed)
    rng = torch.Generator().manual_seed(seed)
    probe = cases.random_probe(rng, tiny.WIDTH, "relu", Norm.NONE, "feature")
    programs = (
        SteeringProgram({SITE: SiteProgram(edits=(clamp(probe, 3.0),))}),
        SteeringProgram({SITE: SiteProgram(bans=cases.correlated_bans(rng, 2, tiny.WIDTH, 0.0, 1.5))}),
    )
    plain = [wanted(model, prompt, 8) for prompt in asked]
    steered = [wanted(model, asked[-1], 8, program) for program in programs]
    with tiny.RunningEngine(serve(model)) as engine:
        answers = [ask(engine, f"plain {number}", prompt) for number, prompt in enumerate(asked)]
        moved = [
            ask(engine, f"moved {number}", asked[-1], program) for number, program in enumerate(programs)
        ]
        for answer, (tokens, gaps) in zip([*answers, *moved], [*plain, *steered], strict=True):
            assert not hooked.differs(answer.wait().tokens(), tokens, gaps)
        clamped = moved[0].finished.receipt.sites[0]
        # All tokens of the prompt and of the answer but its last one, those of pictures among them.
        assert clamped.tokens_edited == len(asked[-1].tokens) + 7


@torch.inference_mode()
def test_captures_and_scores_of_pictures_are_transformers_own() -> None:
    model = seeing.make("llava")
    prompt = prompts(model, 0)[-1]
    ids = torch.tensor([prompt.tokens])
    output = model.model(input_ids=ids, **prompt.given, use_cache=False, output_hidden_states=True)
    logprobs = output.logits[0].log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    with tiny.RunningEngine(serve(model)) as engine:
        captured = engine.engine.capture(prompt.tokens, pictures=prompt.pictures).result(60)
        scored = engine.engine.score(prompt.tokens, pictures=prompt.pictures).result(60)
    torch.testing.assert_close(captured[SITE], output.hidden_states[2][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(scored.logprobs), logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(40, 40), (64, 16), (16, 64), (60, 20)])
def test_tiles_lie_where_the_processor_says_that_they_are(shape: tuple[int, int]) -> None:
    """Before each tile's tokens the processor writes its row and its column."""
    model = seeing.make("idefics3_tiles")
    shown = model.eyes.show(seeing.picture(0, *shape))
    *tiles, whole = shown.grids
    names = model.processor.tokenizer.convert_ids_to_tokens(list(shown.tokens))
    first = tiles[0]
    rows, columns = round(1.0 / (first.bottom - first.top)), round(1.0 / (first.right - first.left))
    for grid in tiles:
        row, column = round(grid.top * rows) + 1, round(grid.left * columns) + 1
        assert names[grid.first - 1] == f"<row_{row}_col_{column}>"
    assert len(tiles) == rows * columns
    assert names[whole.first - 1] == "<global-img>"
    assert whole[3:] == (0.0, 0.0, 1.0, 1.0)
    begins = [place for place in shown.places if place - 1 not in shown.places]
    assert [grid.first for grid in shown.grids] == begins


def test_placeholders_stand_where_pictures_are_and_nowhere_else() -> None:
    shown = Shown((7, 9, 9, 8), (1, 2), {})
    assert misplaced([1, 7, 9, 9, 8, 2], [Placed(1, shown)], 9) == ""
    assert (
        misplaced([1, 7, 9, 9, 8, 9], [Placed(1, shown)], 9)
        == "token 5 stands for a picture, and there is none"
    )
    assert "are not those of the picture" in misplaced([1, 7, 9, 9, 2], [Placed(1, shown)], 9)
    assert "share token 3" in misplaced([7, 9, 9, 8, 7, 9, 9, 8], [Placed(0, shown), Placed(3, shown)], 9)
    assert misplaced([1, 2], [Placed(0, shown)], None) == "the model sees no pictures"
    assert misplaced([9], [], None) == ""


def test_an_engine_refuses_placeholders_without_pictures() -> None:
    model = seeing.make("llava")
    with tiny.RunningEngine(serve(model)) as engine:
        forged = seeing.Prompted([1, model.eyes.placeholder_id, 2], (), {})
        with pytest.raises(FieldError, match="prompt: token 1 stands for a picture, and there is none"):
            ask(engine, "forged", forged)
        with pytest.raises(FieldError, match="stands for a picture"):
            engine.engine.score(forged.tokens)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "smolvlm", "llava_next", "paligemma"])
def test_other_families_that_see_are_refused_by_name(family: str, tmp_path: Path) -> None:
    configure: Any = CONFIG_MAPPING[family]
    configure().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=f"{family} is not served: "):
        load_model(str(tmp_path))
