"Labels that two people, a kill, a full disk and an editor get at, all at once"
import json, os, random, resource, shutil, signal, subprocess, sys, time
import numpy as np
import pytest
from steerlens.core import SteerlensError, rng
from steerlens.explore.edits import Conflict
from steerlens.explore.labels import Labels
from steerlens.explore.review import decide, decisions, next_batch
from conftest import BIN

WHOSE = dict(autoencoder='ab12', site='lm.1.out', n_features=24_576)
STAY = dict(OMP_NUM_THREADS='1')

SAVES = """
import sys
from steerlens.explore.labels import Labels
labels,name = Labels(sys.argv[1]), sys.argv[2]
for i in range(200):
    labels.set(i%50, name, evidence=[*labels[i%50]['evidence'], f'{name}-{i}'], **{f'of_{name}': i})
    print(i, flush=True)
"""


def fresh(folder, **labels):
    made = Labels(folder/'feature_labels.json', WHOSE)
    made.set(0, 'ann', label='first')
    return made


def saving(file, name, **pipes):
    return subprocess.Popen([sys.executable, '-c', SAVES, str(file), name], text=True, env=os.environ | STAY, **pipes)


def kept(labels, name): return {x for e in labels.entries() for x in e['evidence'] if x.startswith(name)}


def test_kills_during_200_saves_lose_at_most_the_current_one(tmp_path):
    labels = fresh(tmp_path)
    for life in range(5):
        p = saving(labels.file, f'life{life}', stdout=subprocess.PIPE)
        said = [p.stdout.readline() for _ in range(random.Random(life).randrange(5, 60))]
        time.sleep(random.Random(life).random()*.01)
        p.kill()
        said += p.stdout.read().split()
        labels.refresh()
        assert len(kept(labels, f'life{life}')) in (len(said), len(said)+1)
    labels.set(0, 'ann', notes='still here')
    assert not list(tmp_path.glob('.tmp-*')), 'what the killed left is removed'
    assert labels[0]['label']=='first'


def test_two_writers_lose_nothing(tmp_path):
    labels = fresh(tmp_path)
    two = [saving(labels.file, name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for name in ('ann', 'bob')]
    assert [(p.communicate()[1], p.returncode) for p in two]==[('', 0)]*2
    labels.refresh()
    for name in ('ann', 'bob'):
        assert kept(labels, name)=={f'{name}-{i}' for i in range(200)}
        assert all(labels[f][f'of_{name}']==150+f for f in range(50))
    assert labels.conflicts()=={} and labels.revision==401


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path):
    labels = fresh(tmp_path)
    before = labels.file.read_bytes()
    if not (pid := os.fork()):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try: labels.set(1, 'ann', label='x', notes='n'*5000)
        except SteerlensError as e: os._exit(7 if 'could not be written' in str(e) and '\n' not in str(e) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==7
    assert labels.file.read_bytes()==before and not list(tmp_path.glob('.tmp-*'))


def test_a_folder_that_may_only_be_read(tmp_path):
    "Labels can be read there; a change is one line"
    labels = fresh(tmp_path)
    labels.file.with_name(f'.lock-{labels.file.name}').unlink()
    tmp_path.chmod(0o555)
    if not (pid := os.fork()):
        if os.geteuid()==0: os.setuid(65534)
        os.chdir('/')
        try: labels.set(1, 'ann', label='x')
        except SteerlensError as e: os._exit(7 if 'could not be written (Permission denied)' in str(e) else 8)
        os._exit(9)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tmp_path.chmod(0o755)
    assert status==7 and Labels(labels.file)[0]['label']=='first'


HARD = ['<script>alert(1)</script>', 'line\u2028separators\u2029and\x85more', 'emoji 🏊‍♀️ family 👨‍👩‍👧', '{"a": [1,',
        'nul\x00 and \x1b[2J escape', '"labels": {', '}\n}\n', '\\ud800 spelt out', 'ß'*1000, "it's", 'e\u0301', '#%%',
        '\ufeffbom', 'None', 'tab\tand\rreturn', 'right \u202eto left']


def test_any_text_comes_back(tmp_path):
    labels = fresh(tmp_path)
    labels.update({i: dict(label=x, notes=x, evidence=[x], **{x: x}) for i,x in enumerate(HARD, 1)}, 'ann')
    again = Labels(labels.file)
    for i,x in enumerate(HARD, 1):
        e = again[i]
        assert (e['label'], e['notes'], e['evidence'], e[x])==(' '.join(x.split()), x, [x], x)
    assert json.loads(labels.file.read_text(encoding='utf-8'))['labels']['1']['label']==HARD[0]
    for bad in ('\ud800', 'x'*1001):
        with pytest.raises(SteerlensError, match='latent 1: label'): labels.set(1, 'ann', label=bad)
    for deep in (40, 800, 100_000):
        nested = []
        for _ in range(deep): nested = [nested]
        with pytest.raises(SteerlensError, match='latent 1: deep'): labels.set(1, 'ann', deep=nested)


@pytest.mark.parametrize('how', ['crlf', 'bom', 'pretty', 'sorted'])
def test_an_editor_may_lay_it_out_anew(tmp_path, how):
    labels = fresh(tmp_path)
    labels.set(7, 'bob', label='ünïcode', category='x')
    text = labels.file.read_text(encoding='utf-8')
    new = dict(crlf=text.replace('\n', '\r\n'), bom='\ufeff'+text, pretty=json.dumps(json.loads(text), indent=4),
               sorted=json.dumps(json.loads(text), sort_keys=True))[how]
    labels.file.write_bytes(new.encode())
    again = Labels(labels.file, WHOSE)
    assert again[7]==labels[7]
    again.set(7, 'ann', category='y')
    assert Labels(labels.file).file.read_text(encoding='utf-8').startswith('{\n"format"')
    assert Labels(labels.file)[7]['label']=='ünïcode'


DAMAGES = [lambda b: b[:len(b)//2], lambda b: b[:-3], lambda b: b'', lambda b: b'\x00'*len(b), lambda b: b'['*100_000,
           lambda b: b'\xff'+b, lambda b: b.replace(b'"about"', b'"abort"'), lambda b: b.replace(b'"0"', b'"-1"'),
           lambda b: b.replace(b'"0": {', b'"99999": {'), lambda b: b.replace(b'"version": 1', b'"version": 9'),
           lambda b: b.replace(b'"revision": 1', b'"revision": []', 1)]


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_one_line_and_left_as_it_is(tmp_path, damage):
    labels = fresh(tmp_path)
    damaged = damage(labels.file.read_bytes())
    labels.file.write_bytes(damaged)
    for use in (lambda: Labels(labels.file), lambda: labels.set(1, 'ann', label='x'), lambda: labels.refresh()):
        with pytest.raises(SteerlensError, match='feature_labels.json') as e: use()
        assert '\n' not in str(e.value) and len(str(e.value)) < 500
    assert labels.file.read_bytes()==damaged


def test_gone_and_linked(tmp_path):
    labels = fresh(tmp_path)
    (tmp_path/'link.json').symlink_to(labels.file)
    Labels(tmp_path/'link.json').set(1, 'bob', label='through the link')
    assert (tmp_path/'link.json').is_symlink() and Labels(labels.file)[1]['label']=='through the link'
    labels.file.unlink()
    with pytest.raises(SteerlensError, match='gone; put it back'): labels.set(1, 'ann', label='x')
    assert not labels.file.exists()


def scribble(labels, g, author):
    "Some changes at random"
    for _ in range(g.integers(1, 6)):
        f,field = int(g.integers(4)), g.choice(['label', 'category', 'notes', 'evidence'])
        value = f'{author} {g.integers(1000)}'
        labels.set(f, author, **{field: [value] if field=='evidence' else value})


def says(labels): return {f: {k: v for k,v in labels[f].items() if k!='revision'} for f in labels}


def test_any_files_merge_in_any_order(tmp_path):
    for seed in range(12):
        g = rng('merge', seed)
        base = fresh(tmp_path/f'{seed}')
        scribble(base, g, 'ann')
        three = []
        for name in ('ann', 'bob', 'cy'):
            shutil.copy(base.file, base.file.with_name(f'{name}.json'))
            three.append(Labels(base.file.with_name(f'{name}.json')))
            scribble(three[-1], g, name)
        a,b,c = three
        ids = {e['id'] for x in three for f in x for e in x.history(f)}
        for x,others in ((a, (b, c)), (b, (c, a)), (c, (a, b))):
            for o in others: x.merge(o.file)
        assert says(a)==says(b)==says(c), seed
        assert {e['id'] for f in a for e in a.history(f)}==ids, 'an edit is lost'
        said = {(f, field) for f,words in a.conflicts().items() for field in ' '.join(words).split() if field[-1]==':'}
        for f,field in {(f, field[:-1]) for f,field in said}: a.set(f, 'dee', **{field: 'decided'})
        assert a.conflicts()=={}
        b.merge(a.file)
        assert says(b)==says(a)


def test_an_edit_among_20_000_labels_touches_one_line(tmp_path):
    labels = Labels(tmp_path/'feature_labels.json', WHOSE)
    said = dict(category='token', confidence=.73, evidence=['sweep-9'], scores=dict(detection=.81, placebo=.5, n=99))
    labels.set(0, 'model:template', label='fires at the word zero', **said)
    head,entry,tail = labels.file.read_text().rpartition('"0": {')[0], labels._text[0], '\n}\n}\n'
    labels.file.write_text(head + ',\n'.join(f'"{f}": {entry}' for f in range(20_000)) + tail)
    before = labels.file.read_text().splitlines()
    Labels(labels.file).set(777, 'ann', category='verb')
    after = labels.file.read_text().splitlines()
    changed = [i for i,(x,y) in enumerate(zip(before, after)) if x!=y]
    assert len(before)==len(after) and [after[i] for i in changed if after[i].startswith('"777"')]
    assert len(changed) <= 2, 'more than the label and the revision of the file'
    assert len(Labels(labels.file).entries())==20_000


def reviewed(file, seed):
    "100 decisions on 300 labels of two models, one of them sure and mostly wrong, by somebody who knows; share wrong"
    g = rng('synthetic review', seed)
    model = np.where(np.arange(300)%2, 'model:careful', 'model:bold')
    sure = np.where(model=='model:bold', .95, g.random(300).round(3))
    wrong = g.random(300) < np.where(model=='model:bold', .8, 1-sure)
    labels = Labels(file, WHOSE | dict(n_features=300))
    for m in sorted({*model}):
        mine = np.flatnonzero(model==m).tolist()
        labels.update({f: dict(label=f'concept {f}', confidence=float(sure[f])) for f in mine}, m)
    while len(decisions(labels)) < 100:
        for item in next_batch(labels, 20):
            false = item['of']!=item['feature'] or wrong[item['feature']]
            decide(labels, item, 'reject' if false else 'accept', 'ann')
    return labels, wrong.mean()


def test_the_queue_finds_more_than_chance_through_files(tmp_path):
    found,share = 0, 0
    for seed in range(4):
        labels,wrong = reviewed(tmp_path/f'{seed}.json', seed)
        found,share = found+(~decisions(labels)[:100].agreed).sum()/400, share+wrong/4
        assert len(labels.placebos) >= 9 and not any(p['accepted'] for p in labels.placebos)
    assert found > share + 2*(share*(1-share)/400*2/3)**.5, (found, share)


def command(tmp_path, *args, **kw):
    env = os.environ | STAY | dict(PYTHONUNBUFFERED='1', STEERLENS_AUTHOR='ann')
    words = [BIN/'steerlens', 'label', *args, '--file', tmp_path/'feature_labels.json']
    return subprocess.Popen(list(map(str, words)), env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **kw)


def test_a_review_is_stopped_by_hand_and_gone_on_with(tmp_path):
    labels = Labels(tmp_path/'feature_labels.json', WHOSE)
    labels.update({f: dict(label=f'<i>concept\x1b[2J {f}', confidence=.1*f) for f in range(8)}, 'model:template')
    p = command(tmp_path, 'review', '--placebo', '0')
    p.stdin.write('a\n')
    p.stdin.flush()
    while '[2 of 8]' not in p.stdout.readline(): pass
    p.send_signal(signal.SIGINT)
    out,err = p.communicate()
    assert p.returncode==0 and err=='' and '1 accepted; 1 decided in all, 7 left; the same command goes on' in out
    out,err = command(tmp_path, 'review', '--placebo', '0').communicate('r not that\ne better\nx\ns\nq\n')
    assert "1 edited, 1 rejected, 1 skipped; 3 decided in all, 5 left" in out and "'x' is no answer" in out and not err
    assert '\x1b' not in out and 'Traceback' not in out
    labels.refresh()
    assert sorted(e['status'] for e in labels.entries())==['accepted']*2+['draft']*5+['rejected']
    out,err = command(tmp_path, 'list', '--json').communicate()
    assert len(json.loads(out))==8


def test_a_label_that_changes_under_a_review_is_left_alone(tmp_path):
    labels = fresh(tmp_path)
    labels.set(3, 'model:a', label='push')
    item = next(i for i in next_batch(labels, placebo=0) if i['feature']==3)
    Labels(labels.file).set(3, 'bob', label='pull')
    for decision in ('accept', 'reject'):
        with pytest.raises(Conflict, match="'pull' by bob .* came while 'push' was written"):
            decide(labels, item, decision, 'ann')
    assert labels[3]['status']=='draft'
