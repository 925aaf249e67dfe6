"""Questions about pictures: the same by their number, each beside the one in words."""

from saegis_lab.polyglot.corpus import ASSISTANT, END
from saegis_lab.polyglot.eyes.asking import IMAGE, NOTHING, Asking, picture_questions
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import LANGUAGES, lexicon
from saegis_lab.polyglot.scoring import is_refusal


def test_every_language_asks() -> None:
    questions = picture_questions()
    assert tuple(questions) == LANGUAGES
    assert len({len(asked) for asked in questions.values()}) == 1
    assert not any(IMAGE in text for asked in questions.values() for text in asked)


def test_a_question_holds_one_picture_and_its_words_none() -> None:
    asked = [Asking(0).question(number) for number in range(300)]
    assert asked == [Asking(0).question(number) for number in range(300)]
    assert asked != [Asking(1).question(number) for number in range(300)]
    for each in asked:
        assert each.picture.count(IMAGE) == 1
        assert IMAGE not in each.words
        assert each.picture.endswith(END + ASSISTANT)
        assert each.words.endswith(END + ASSISTANT)
        assert each.answer.endswith(END)
    assert {each.subject for each in asked} == {*range(len(ICONS)), NOTHING}


def test_answers_are_the_corpus_s() -> None:
    unsure = {text + END for language in lexicon().values() for text in language.unsure}
    english = {text + END for text in lexicon()["en"].refusals}
    refused = set()
    for number in range(600):
        each = Asking(0).question(number)
        harmful = (
            each.subject != NOTHING and lexicon()["en"].subjects[list(ICONS)[each.subject]].kind == "harmful"
        )
        assert (each.answer in unsure) == (each.subject == NOTHING)
        if is_refusal(each.answer):
            assert harmful
            refused.add(each.answer)
    assert refused <= english
    assert refused
