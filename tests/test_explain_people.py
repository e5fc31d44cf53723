"Readers and raters under fire: an endpoint that dies, tokens that want to be more, forms that give themselves away"
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np
import pandas as pd
import pytest
from steerlens.core import SteerlensError
from steerlens.explain.human import looks, make_form, open_form, verdict
from steerlens.explain.ranked import Names, explain
from steerlens.explain.simulate import (asking, given, open_reader, questions, read_by_model, readings,
                                        weighing, worth)
from steerlens.explain.carried import asked, carried
from steerlens.explain.study import contexts, form_of
from steerlens.explore.prompts import Reply, Talk
from steerlens.explore.toy import toy_bench

WORDS = [' self', ' return', '"', '\n2. "x"', '<|im_end|>', '1']


@pytest.fixture(scope='module')
def q(): return questions([WORDS[i%6] for i in range(48)], [i//2 for i in range(48)], 4)


@pytest.fixture
def server(monkeypatch):
    "Answers with the number of the token that its notes promote, `left` times; then it is gone"
    asked,left = [], [10**6]
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_POST(self):
            user = json.loads(self.rfile.read(int(self.headers['content-length'])))['messages'][1]['content']
            left[0] -= 1
            if left[0] < 0: return self.send_error(500)
            asked.append(user)
            listed = [line[3:] for line in user.splitlines() if line[:1] in '1234' and line[1:3]=='. ']
            hit = [i for i,t in enumerate(listed, 1) if json.dumps(f'promotes {t}')[1:-1] in user]
            body = json.dumps(dict(choices=[dict(message=dict(content=str(hit[0]) if hit else 'who knows'))]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())
    made = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=made.serve_forever, args=[.01], daemon=True).start()
    monkeypatch.setenv('STEERLENS_LLM_URL', f'http://127.0.0.1:{made.server_port}')
    yield asked,left
    made.shutdown()
    made.server_close()


def talk_to(folder):
    talk = open_reader('endpoint', 'tiny', folder, workers=1)
    talk.backoff = 0.
    return talk


def test_an_endpoint_that_dies_costs_a_line_and_nothing_else(server, tmp_path):
    asked,left = server
    q = questions([w for w in "abcdef"]*8, [i//2 for i in range(48)], 4)
    read = readings(given(q), [[' zip']]*len(q), q)
    left[0] = 70
    none,said = read_by_model('endpoint', talk_to(tmp_path), q, read)
    assert not len(none) and 'not asked to the end' in said and '70 answers are kept' in said and '\n' not in said
    left[0] = 10**6
    t,said = read_by_model('endpoint', talk_to(tmp_path), q, read)
    assert 'can use notes' in said and len(asked)==len({*asked}) # nothing is asked twice
    n = len(asked)
    again,_ = read_by_model('endpoint', talk_to(tmp_path), q, read)
    assert again.equals(t) and len(asked)==n
    own = worth(t).set_index(['masked', 'arm']).right
    assert own[False, 'given']==1 and own[False, 'explanation']==1 and own[False, 'none']==.25


def test_no_reader_is_opened_by_halves(tmp_path, monkeypatch):
    monkeypatch.delenv('STEERLENS_LLM_URL', raising=False)
    for name,llm,why in (('endpoint', 'tiny', 'no address'), ('endpoint', '', 'no model'), ('oracle', 'x', 'oracle'),
                         ('', 'tiny', 'no reader'), ('likelihood', '/no/such/folder', 'neither a folder')):
        with pytest.raises(SteerlensError, match=why) as e: open_reader(name, llm, tmp_path/'talk')
        assert '\n' not in str(e.value)


def test_a_token_is_never_more_than_a_token(q):
    for x in q:
        lines = asking(x, '')[1]['content'].splitlines()
        assert [line[:3] for line in lines[1:5]]==['1. ', '2. ', '3. ', '4. '] and lines[5]==''
        texts = [m['content'] for m in weighing(x, 'for 1: promotes "<|im_end|>"\nfor 1: \x1b[2J')]
        assert not any('<|im_end|>' in t or '\x1b' in t for t in texts) and len(texts)==5


def test_an_answer_that_is_no_answer_is_counted(q, tmp_path):
    class Mute:
        workers,settings = 1, dict(model='mute')
        def body(self, messages): return dict(messages=messages)
        def says(self, messages):
            return Reply('It is hard to say.')
    t,said = read_by_model('endpoint', Talk(tmp_path, Mute()), q, readings(given(q), [[' zip']]*len(q), q))
    assert (t.place==-1).all() and (t.right==.25).all()
    assert 'can NOT use notes' in said and 'no answer to 100%' in said


def test_who_always_takes_one_place_is_at_chance():
    for n,k in ((40, 4), (41, 4), (90, 3)):
        q = questions([WORDS[i%6] for i in range(n)], range(n), k)
        counts = np.bincount([x.answer for x in q], minlength=k)
        assert np.ptp(counts) <= 1 and len(q)==n
        assert np.ptp(np.bincount([x.answer for x in q[:k*(n//k//2)]], minlength=k))==0 # so is any part of whole turns


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return toy_bench(tmp_path_factory.mktemp('toy')/'codes/toy')


def test_a_form_says_nothing_of_whose_it_is(toy, tmp_path):
    lines = asked(toy, 60)
    found = carried(toy, lines)
    names = Names(found[0].whose, {f: (f'token "{found[f].said}" here', .9) for f in range(20)})
    short = [[(1, int(f)) for f in p.latents[:2]] for p in found]
    form = form_of(tmp_path, [explain(p, names) for p in found], contexts(toy, lines), names, dict(written=short))
    page = (form.folder/'form.json').read_text()
    assert not any(word in page for word in ('ranked', 'written', 'placebo', 'comes out', 'ahead', 'effect', 'latent '))
    t = looks(form)
    assert {*t.arm}=={'ranked', 'written'}
    for r in t[t.look=='masked places'].itertuples(): assert r.lo <= .5 <= r.hi, r # masked in both alike
    for i,item in form.items.items(): # what either prediction said stands nowhere
        own = [form.key[j]['of'] for j,other in form.items.items() if other['prediction']==item['prediction']]
        assert not any(f'"{found[of].said}"' in item['text'] for of in own)


def test_a_form_of_earlier_days_is_counted_still(tmp_path):
    t = pd.DataFrame(dict(context='x', said=list('abcdefgh'), document=range(8)))
    form = make_form(tmp_path/'form', t, dict(ranked=[f'because {i}' for i in range(8)]))
    key = {k: v | dict(arm=v['arm'].replace('placebo of ranked', 'placebo')) for k,v in form.key.items()}
    (form.folder/'key.json').write_text(json.dumps(key))
    old = open_form(form.folder)
    for item in old.order('ann'): old.rate('ann', {item: 3+(key[item]['arm']=='ranked')})
    assert 'ranked: 4 of 5, 1 above its placebo' in verdict(old)
