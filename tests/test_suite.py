"The task suite beside lm-evaluation-harness, killed and resumed, and what users of the harness reported"
import hashlib, json, shutil, sys, zlib
from pathlib import Path
import numpy as np, pytest
from steerlens.core import SteerlensError, read_json, sha256
from conftest import ROOT, killed, sh

HARNESS = ROOT/'tests'/'parity'/'harness'
sys.path.insert(0, str(HARNESS.parent))
from harness_files import spoken, write_files

RECORDED = read_json(HARNESS/'recorded.json')
CASES = [(model, task) for model in ('gpt2', 'llama') for task in RECORDED[model]]


@pytest.fixture(scope='module')
def files(tmp_path_factory): return write_files(tmp_path_factory.mktemp('files'))


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "The recorded GPT-2, and the Llama whose weights are drawn by name"
    import torch, transformers as hf
    folder = tmp_path_factory.mktemp('models')
    for name in ('gpt2', 'llama'): shutil.copytree(HARNESS/name, folder/name)
    llama = hf.LlamaForCausalLM(hf.AutoConfig.from_pretrained(folder/'llama'))
    for name,p in llama.named_parameters():
        if p.ndim<2: continue
        g = np.random.RandomState(zlib.crc32(name.encode()))
        p.data = torch.from_numpy(g.standard_normal(p.shape).astype('f4')*.3)
    llama.save_pretrained(folder/'llama')
    return folder


def sheet(files, name, **how):
    from steerlens.suite.run import Sheet
    from steerlens.suite.tasks import TASKS
    task,train = TASKS[name], files/f'{name}_train.jsonl'
    file, = files.glob(f'{name}.json*')
    return Sheet(task, task.read(file), task.read(train) if train.exists() else None, files=(file,), **how)


def short(text): return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_files_are_those_that_were_recorded(files):
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files.iterdir()}==RECORDED['files']


@pytest.mark.parametrize('model,name', CASES)
def test_prompts_answers_and_scores_are_the_harness_s(files, models, model, name):
    from steerlens.subjects import lm
    from steerlens.subjects.base import alone
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import Likelihood, Reader, plain
    from steerlens.suite.run import marked
    from steerlens.suite.tasks import said
    asked,theirs = sheet(files, name), RECORDED[model][name]
    subject,requests = lm.subject(models/model), asked.requests
    n = len(requests)//len(asked.docs)
    assert requests[0].context==theirs['first']
    assert [short(r.context) for r in requests[::n]]==[i['prompt'] for i in theirs['items']]
    reader,found = Reader(subject, load_tokenizer(subject.folder), requests), {}
    with alone(subject):
        for i,part in enumerate(reader.parts): found |= dict(zip(part, reader.answer(plain(subject), i)))
    answers = [found[i] for i in range(len(requests))]
    if n > 1: # likelihoods
        assert [r.continuation for r in requests[:n]]==theirs['continuations']
        wants = [a for item in theirs['items'] for a in item['answers']]
        assert np.allclose([a.logp for a in answers], [logp for logp,_ in wants], atol=1e-3)
        assert [a.greedy for a in answers]==[greedy for _,greedy in wants]
    else: assert answers==[item['answers'][0] for item in theirs['items']]
    marks = marked(asked, said(asked.task, asked.docs, answers), 'frozen').groupby('score').value.mean()
    for score,value in marks.items():
        key,unit = NAMES.get(score, (f'{score},none', 100 if name=='squadv2' else 1))
        if key: assert value==pytest.approx(theirs['scores'][key]/unit, abs=1e-9), score


NAMES = dict(strict=('exact_match,strict-match', 1), flexible=('exact_match,flexible-extract', 1), abstains=(None, 1),
             number=(None, 1))


def test_scores_of_answers_that_no_model_wrote():
    "300 of them, by the harness's filters and by the script of SQuAD's authors"
    import random
    from steerlens.suite.tasks import TASKS
    for d,theirs in zip(spoken(random.Random(5), 300), RECORDED['marks'], strict=True):
        ours = TASKS['squadv2'].marks(dict(answers=d['golds']), d['text'])
        assert [ours['exact'], ours['f1']]==pytest.approx([theirs['exact'], theirs['f1']]), d
        ours = TASKS['gsm8k'].marks(dict(answer=d['answer']), d['worked'])
        assert [ours['strict'], ours['flexible']]==[theirs['strict-match'], theirs['flexible-extract']], d


def run(models, sheets, folder, model='gpt2'):
    from steerlens.subjects import lm
    from steerlens.suite.arms import Place, arms_at
    from steerlens.suite.run import run_suite
    subject = lm.subject(models/model)
    return run_suite(subject, sheets, arms_at([Place(subject)])[0], {}, folder, 8)


def test_killed_it_goes_on_to_the_same_bytes(files, models, tmp_path):
    from steerlens.suite import run as module
    sheets = [sheet(files, 'boolq'), sheet(files, 'squadv2')]
    whole = run(models, sheets, tmp_path/'whole')
    for after in (2, 9): # before the second piece, and among those of the second task
        assert killed(lambda: run(models, sheets, tmp_path/'killed'), [(module, 'write_json')], after)==-9
    n_killed,n_whole = (len([*(tmp_path/name/'pieces').rglob('*.json')]) for name in ('killed', 'whole'))
    assert 0 < n_killed < n_whole
    run(models, sheets, tmp_path/'killed')
    assert sha256(tmp_path/'killed')==sha256(tmp_path/'whole')
    other = run(models, sheets[:1], tmp_path/'killed', 'llama') # another model's pieces are made anew
    assert other.scores.value.tolist()!=whole.scores.value.tolist()
    changed = sheet(files, 'boolq')
    changed.docs = changed.docs[::-1]
    assert len(run(models, [changed], tmp_path/'killed').marks)==len(whole.marks[whole.marks.task=='boolq'])


def test_ways_to_ask_stand_side_by_side(files, models, tmp_path):
    "With worked examples and without, of fewer documents, of a changed file: no run touches another, killed or not"
    from dataclasses import replace
    from steerlens.suite import run as module
    from steerlens.suite.run import past
    first = sheet(files, 'gsm8k', shots=0)
    fewer = replace(first, docs=first.docs[:20])
    other = replace(first, docs=[d | dict(answer='#### 1') for d in first.docs])
    ways = [first, sheet(files, 'gsm8k'), fewer, other]
    kept = {}
    for w in ways:
        found = run(models, [w], tmp_path)
        assert found.folder not in kept
        kept[found.folder] = sha256(found.folder)
    assert len({*kept.values()})==4
    assert killed(lambda: run(models, ways[1:2], tmp_path/'killed'), [(module, 'write_json')], 3)==-9
    for w in ways: run(models, [w], tmp_path/'killed')
    assert {f: sha256(f) for f in kept}==kept=={f: sha256(tmp_path/'killed'/f.name) for f in kept}
    assert sorted(past(tmp_path).query('arm=="frozen"').shots)==[0, 0, 0, 5]


# What users reported of the harness, on ours

def test_one_beginning_token_and_not_two(models):
    "#3333, #3347: Gemma's perplexity with two"
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import Ask, encoded, pair
    tok = load_tokenizer(models/'llama')
    for text in ('The box', '<|begin|>The box'): assert encoded(tok, text).count(tok.bos_token_id)==1
    assert pair(tok, Ask('', 'The box'))[0]==[tok.bos_token_id]


def test_what_is_cut_is_counted_and_said(files, models, tmp_path):
    "#1642, #2300, #3115: prompts lose their beginning without a word in the result"
    from steerlens.suite.run import sentences
    found = run(models, [sheet(files, 'boolq')], tmp_path)
    assert found.cut==dict(boolq=2) and any('cut from the left' in line for line in sentences(found))


def test_a_batch_changes_nothing_beyond_rounding(files, models):
    "#704, #879, #1645: other scores with another batch size"
    from steerlens.subjects import lm
    from steerlens.subjects.base import alone
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import Reader, plain
    subject = lm.subject(models/'gpt2')
    tok,requests = load_tokenizer(subject.folder), sheet(files, 'boolq').requests
    def logps(batch):
        reader,found = Reader(subject, tok, requests, batch), {}
        with alone(subject):
            for i,part in enumerate(reader.parts): found |= dict(zip(part, reader.answer(plain(subject), i)))
        return np.array([found[i].logp for i in range(len(requests))])
    assert np.abs(logps(1)-logps(16)).max() < 1e-4


def test_abstaining_as_taught_is_seen(files):
    "#3212, #3843: 'unanswerable' gets 0 where there is no answer; the harness's score is kept, and one beside it tells"
    from steerlens.suite.tasks import TASKS
    marks = TASKS['squadv2'].marks(dict(answers=[]), ' unanswerable')
    assert (marks['NoAns_exact'], marks['abstains'])==(0., 1.)


def test_no_example_is_the_question_itself(files):
    "Worked examples from the file that is asked: never the question, and never fewer than were asked for"
    from dataclasses import replace
    for pool in (None, 'same'):
        own = replace(sheet(files, 'gsm8k'), pool=None)
        if pool: own.pool = own.docs # the same questions, as if from another file
        for request,d in zip(own.requests, own.docs):
            assert request.context.count('Question:')==6 and request.context.count(d['question'])==1


def test_hidden_answers_have_no_score(tmp_path):
    "#3022: SuperGLUE's test split has -1 for every label"
    from steerlens.suite.files import boolq
    (tmp_path/'test.jsonl').write_text(json.dumps(dict(question='q', passage='p', idx=0, label=-1)))
    with pytest.raises(SteerlensError, match="'label' is -1"): boolq(tmp_path/'test.jsonl')


def test_the_majority_stands_beside_a_score(files, models, tmp_path):
    "#1813: is 0.65 on BoolQ good? 62 % of its answers are yes"
    found = run(models, [sheet(files, 'boolq')], tmp_path).scores.set_index('arm')
    labels = [d['label'] for d in sheet(files, 'boolq').docs]
    assert found.value['constant']==max(np.mean(labels), 1-np.mean(labels))


def test_a_number_is_a_number():
    "#3214, #3254: $29.00 isn't 29; the harness's score is kept, and one beside it tells"
    from steerlens.suite.tasks import TASKS
    marks = TASKS['gsm8k'].marks(dict(answer='So.\n#### 29'), 'The order costs $29.00.')
    assert (marks['flexible'], marks['number'])==(0., 1.)


def test_a_token_across_the_join_is_one_line_before_any_work(models, tmp_path):
    "#1053, #1297, #3336: an assertion in the middle of a run, where one token holds the end of both"
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import Ask, pair
    tok = load_tokenizer(models/'gpt2')
    word = next(tok.decode([i]) for i in range(300, 448) if len(tok.decode([i]).strip()) > 3)
    with pytest.raises(SteerlensError, match='no tokens on one side') as e: pair(tok, Ask(word[:-1], word[-1]))
    assert '\n' not in str(e.value) and repr(word[-1]) in str(e.value)


def test_every_token_that_ends_a_text_ends_it(models):
    "#2723: what follows an end-of-turn token in a batch stays in the answer"
    from steerlens.subjects import lm
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import ended, ends_of
    subject = lm.subject(models/'llama')
    tok = load_tokenizer(subject.folder)
    subject.model.generation_config.eos_token_id = [tok.eos_token_id, tok.bos_token_id]
    ids = [*tok.encode('yes', add_special_tokens=False), tok.bos_token_id, *tok.encode('no', add_special_tokens=False)]
    assert ended(tok, ids, (), ends_of(subject, tok))==('yes', True)


def test_what_is_written_does_not_depend_on_the_batch(files, models):
    "#873: stops that depend on the other texts of a batch"
    from steerlens.subjects import lm
    from steerlens.subjects.base import alone
    from steerlens.subjects.text import load_tokenizer
    from steerlens.suite.answers import Reader, plain
    subject = lm.subject(models/'gpt2')
    tok,requests = load_tokenizer(subject.folder), sheet(files, 'gsm8k', shots=2).requests[:12]
    def texts(batch):
        reader,found = Reader(subject, tok, requests, batch), {}
        with alone(subject):
            for i,part in enumerate(reader.parts): found |= dict(zip(part, reader.answer(plain(subject), i)))
        return [found[i] for i in range(len(requests))]
    assert texts(1)==texts(12)


def test_no_answer_of_another_prompt_is_read(files, models, tmp_path):
    "#4084, #4105, #4123, #4166: cached prompts of another few-shot seed, of other samples, of another text"
    from dataclasses import replace
    own = sheet(files, 'gsm8k', shots=2)
    own.docs = own.docs[:8]
    says = replace(own, task=replace(own.task, text=lambda d: f'Q: {d["question"]}\nAnswer:'))
    other = replace(own, docs=sheet(files, 'gsm8k').docs[8:16])
    ways = dict(own=own, seed=replace(own, seed=5), samples=other, prompt=says)
    after = {name: run(models, [w], tmp_path/'one').marks for name,w in ways.items()} # one folder, one after the other
    for name,w in ways.items(): assert after[name].equals(run(models, [w], tmp_path/name).marks), name


FAULTS = {'latin-1': ('is not UTF-8', lambda text: text.replace('Anna', 'Ann\u00e4').encode('latin-1')),
          'truncated': ('not whole JSON', lambda text: text[:-40].encode()),
          'twice': ('each id once', lambda text: text.replace('"q1"', '"q2"').encode()),
          'no answers': ('no answers', lambda text: text.replace('impossible": true', 'impossible": false').encode()),
          'other keys': ("no 'data'", lambda text: text.replace('"data"', '"articles"').encode()),
          'empty': ('an empty file', lambda text: b'')}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_a_file_are_one_line(files, tmp_path, fault):
    from steerlens.suite.files import squad
    says,change = FAULTS[fault]
    (tmp_path/'s.json').write_bytes(change((files/'squadv2.json').read_text()))
    with pytest.raises(SteerlensError, match=says) as e: squad(tmp_path/'s.json')
    assert '\n' not in str(e.value) and 's.json' in str(e.value)


def test_from_the_command_line(files, models):
    said = sh('steerlens', 'suite', models/'gpt2', '--tasks', 'gsm8k,copy', '--data', f'gsm8k={files/"gsm8k.jsonl"}',
              '--examples', f'gsm8k={files/"gsm8k_train.jsonl"}', '--limit', 4, '--out', models/'out', '--json')
    assert said.rc==0, said.err
    found = json.loads(said.out)
    assert {r['task'] for r in found['scores']}=={'gsm8k', 'copy'}
    kept = Path(found['folder'])
    assert (kept/'manifest.json').exists() and kept.parent==models/'out'/'suite'/'gpt2'
