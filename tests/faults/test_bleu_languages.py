"""BLEU of languages that write no spaces between words: no silent 0.0."""

import pytest
from helpers.support import experiment, quiet

import transformer_jax
from transformer_jax.evaluation.metrics import bleu_tokenizer, translation_metrics
from transformer_jax.training.train import train

CHINESE = ['我昨天在图书馆看了一本书。', '他们明天去北京。', 'GPU 很快。']
JAPANESE = ['昨日図書館で本を読みました。', '明日東京へ行きます。', '三千四十五']
THAI = ['เมื่อวานฉันอ่านหนังสือที่ห้องสมุด', 'พรุ่งนี้พวกเขาจะไปกรุงเทพ ครับ']
SPACED = ['我 昨天 在 图书馆 看 了 一 本 书 。', '他们 明天 去 北京 。']
GERMAN = ['vierundzwanzig', 'dreitausendvierundzwanzig']


@pytest.mark.parametrize(
    ('asked', 'language', 'references', 'expected'),
    [
        ('13a', 'zh', CHINESE, 'zh'),
        ('13a', 'zh-CN', CHINESE, 'zh'),
        ('13a', 'ZH_Hant', CHINESE, 'zh'),
        ('13a', 'cmn', CHINESE, 'zh'),
        ('intl', 'zh', CHINESE, 'zh'),
        ('13a', 'raw.zh', CHINESE, 'zh'),
        ('13a', 'ja', JAPANESE, 'char'),
        ('13a', 'jpn', JAPANESE, 'char'),
        ('13a', 'th', THAI, 'char'),
        ('13a', 'zh', SPACED, '13a'),
        ('none', 'zh', CHINESE, 'none'),
        ('char', 'zh', CHINESE, 'char'),
        ('13a', 'de', GERMAN, '13a'),
        ('13a', 'en', [''], '13a'),
        ('13a', '', GERMAN, '13a'),
        ('13a', 'zh', [''], 'zh'),
    ],
)
def test_the_tokenizer_suits_the_language(asked, language, references, expected):
    found = bleu_tokenizer(asked, language, references)
    assert found == expected
    if any(references):
        # One letter is wrong in each sentence: a BLEU of 0 would say that all is.
        hypotheses = [text[:-1] + '!' for text in references]
        scores, _ = translation_metrics(
            hypotheses, references, source='en', target=language, tokenize=found
        )
        assert (scores['bleu'] > 20) is (asked != 'none' and references != GERMAN)
        assert f'tok:{found}' in scores['bleu_signature']


@pytest.mark.slow
def test_another_tokenizer_than_the_configured_one_is_told(tmp_path, call):
    config = experiment(
        data__target='ja', data__vocab_size=60, train__steps=1, evaluate__bleu_tokenize='13a'
    )
    train(config, tmp_path, quiet)
    remarks = []
    scores = transformer_jax.open_run(tmp_path, log=remarks.append).evaluate()
    assert 'tok:char' in scores['bleu_signature']
    [remark] = [remark for remark in remarks if remark.startswith('BLEU: ')]
    assert "evaluate.bleu_tokenize='13a' finds no words in data.target='ja'" in remark
