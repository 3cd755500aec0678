"""BLEU, chrF, TER and ROUGE: equal to the packages that define them, on hundreds of random cases."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.metrics.rouge import ROUGE, rouge_scores, words_of
from jaxlm.metrics.translation import sentence_chrf, signatures, tokenization_of, translation_scores

WORDS = "the a cat dog sat on mat, Running quickly it's 3.5 don't end. Über straße (x) — \"quoted\"".split()
HAN = list("今天天气很好我们去公园散步吧，。的是不了")


def cases(seed: int, number: int, words: list[str], between: str) -> tuple[list[str], list[list[str]]]:
    """Texts and, of each, one to four references that are like it."""
    rng = np.random.default_rng(seed)

    def text() -> list[str]:
        return rng.choice(words, rng.integers(1, 15)).tolist()

    texts, references = [], []
    for _ in range(number):
        made = text()
        given = []
        for _ in range(rng.integers(1, 5)):
            kept = [word for word in made if rng.random() < 0.7]
            given.append(between.join(kept + text()[: rng.integers(1, 4)]))
        texts.append(between.join(made))
        references.append(given)
    return texts, references


@pytest.mark.parametrize(("tokenization", "words"), [("13a", WORDS), ("intl", WORDS), ("zh", HAN), ("char", HAN)])
def test_translation_scores_are_sacrebleus(tokenization, words):
    sacrebleu = pytest.importorskip("sacrebleu")
    for seed in range(13):
        texts, references = cases(seed, 4, words, "" if words is HAN else " ")
        most = max(map(len, references))
        streams = [[given[i] if i < len(given) else None for given in references] for i in range(most)]
        found = translation_scores(texts, references, tokenization)
        assert found.bleu == sacrebleu.corpus_bleu(texts, streams, tokenize=tokenization).score
        assert found.chrf == sacrebleu.corpus_chrf(texts, streams).score
        asian = {"normalized": True, "asian_support": True} if words is HAN else {}
        assert found.ter == sacrebleu.corpus_ter(texts, streams, **asian).score
    counts = {len(given) for given in references}
    number = str(most) if len(counts) == 1 else "var"
    said = signatures(references, tokenization)
    bleu = sacrebleu.metrics.BLEU(tokenize=tokenization)
    bleu.corpus_score(texts, streams)
    assert said["bleu"] == str(bleu.get_signature())
    assert said["bleu"].startswith(f"nrefs:{number}|case:mixed|eff:no|tok:{tokenization}|smooth:exp|version:")
    assert said["ter"].startswith(f"nrefs:{number}|case:lc|tok:tercom|")
    assert said["chrf"].startswith(f"nrefs:{number}|case:mixed|eff:yes|nc:6|nw:0|space:no|")
    assert sentence_chrf(texts[0], references[0]) == sacrebleu.sentence_chrf(texts[0], references[0]).score / 100


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_rouge_scores(stemmer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=stemmer)
    for seed in range(50):
        texts, references = cases(seed, 2, [*WORDS, "\n"], " ")
        expected = [scorer.score_multi(given, text) for text, given in zip(texts, references, strict=True)]
        found = rouge_scores(texts, references, stemmer=stemmer)
        for name in ROUGE:
            assert found[name] == pytest.approx(np.mean([score[name].fmeasure for score in expected]), abs=1e-12)


def test_rouge_of_texts_that_do_not_part_words():
    pytest.importorskip("rouge_score")
    text, reference = "今天天气很好。", "今天天气不好"
    assert rouge_scores([text], [[reference]])["rouge1"] == 0  # rouge-score finds no a-z in them
    found = rouge_scores([text], [[reference]], "unicode")
    assert found["rouge1"] == pytest.approx(5 / 6) and found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6)
    assert rouge_scores(["BERT模型 runs"], [["bert 模 型 run"]], "unicode", stemmer=True)["rouge1"] == 1
    assert rouge_scores(["Straße für हिन्दी"], [["straße हिन्दी"]], "unicode")["rouge1"] == pytest.approx(4 / 5)
    assert words_of([text]) == "unicode" and words_of(["Zusammenfassung über BERT"]) == "latin"


def test_several_references_the_best_counts():
    pytest.importorskip("rouge_score")
    assert rouge_scores(["a b c"], [["x y", "a b c"]]) == dict.fromkeys(ROUGE, 1.0)


@pytest.mark.parametrize(
    ("language", "texts", "expected"),
    [
        ("zh_CN", [], {"zh"}),
        ("zho_Hans", [], {"zh"}),
        ("ja", [], {"ja-mecab", "char"}),
        ("ko-KR", [], {"ko-mecab", "char"}),
        ("de", ["Ein Hund"], {"13a"}),
        ("target", ["今天天气很好"], {"zh"}),
        ("target", ["今日はいい天気です"], {"ja-mecab", "char"}),
        ("tgt", ["오늘 날씨가 좋다"], {"ko-mecab", "char"}),
        ("target", [], {"13a"}),
    ],
)
def test_the_language_decides_how_bleu_splits(language, texts, expected):
    assert tokenization_of(language, texts) in expected


@pytest.mark.parametrize("score", [translation_scores, rouge_scores])
def test_nothing_to_score(score):
    with pytest.raises(ValueError, match="expected at least one text"):
        score([], [])
    with pytest.raises(ValueError, match="a reference of each"):
        score(["a"], [[]])
