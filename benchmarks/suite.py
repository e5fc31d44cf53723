"""The task suite beside lm-evaluation-harness: requests a second on the same files, models and batches

    python benchmarks/suite.py [--quick] [--json FILE] [--only trained,larger]

From a file in its published format to a score, on BoolQ (two likelihoods a question) and GSM8K (five worked examples,
up to 256 tokens written). Ours also keeps each batch, so that it can be killed, and resamples for its intervals. The
other peer is the limit: the model alone on the very batches that ours made, nothing read, scored or kept. The harness
is left out where `lm_eval` can't be imported; `tests/parity/harness.py` says how it is installed.
"""
import os
os.environ |= dict(TQDM_DISABLE='1', HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
import io, logging, shutil, sys
from pathlib import Path
import torch, transformers
from steerlens.core import root as project
from steerlens.subjects import lm
from steerlens.subjects.base import alone
from steerlens.suite.answers import plain
from steerlens.suite.run import Sheet, run_suite
from steerlens.suite.tasks import TASKS
from table import Peak, args, run, timed

PARITY = project()/'tests'/'parity'
sys.path.insert(0, str(PARITY))
from harness_files import write_files

ARGS = args(__doc__)
BATCH,N,REPEAT = (8, 24, 1) if ARGS.quick else (16, 100, 3)
LARGER = dict(n_embd=256, n_layer=4, n_head=4) if ARGS.quick else dict(n_embd=512, n_layer=8, n_head=8)
SCORES = dict(boolq=('acc', 'acc,none'), gsm8k=('flexible', 'exact_match,flexible-extract'))


def sheet(files, task):
    "The first N documents"
    t,train = TASKS[task], files/f'{task}_train.jsonl'
    pool = t.read(train) if train.exists() else None
    return Sheet(t, t.read(files/f'{task}.jsonl')[:N], pool)


class Recorded:
    "What the model is run on, to be run again without anything around it"
    def __init__(self, says): self.says,self.calls = says, []

    def __call__(self, ids, mask=None, cache=None):
        first = cache is not None and cache.get_seq_length()==0
        self.calls.append((ids, mask, cache is not None, first))
        return self.says(ids, mask, cache)

    @torch.no_grad()
    def again(self):
        cache = None
        for ids,mask,cached,first in self.calls:
            if first: cache = transformers.DynamicCache()
            self.says(ids, mask, cache if cached else None)


def ours(subject, files, task, folder, says):
    "From the file to scores; nothing is kept from before"
    shutil.rmtree(folder, ignore_errors=True)
    return run_suite(subject, [sheet(files, task)], dict(frozen=says), {}, folder, BATCH)


def harness(model, tok, files):
    "The same by lm-evaluation-harness, or None"
    if not find_spec('lm_eval'): return None
    logging.disable(logging.WARNING)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from harness import local
        known,theirs = TaskManager(), HFLM(pretrained=model, tokenizer=tok, batch_size=BATCH, device='cpu')
    local(files)
    def of(task):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return lm_eval.simple_evaluate(theirs, tasks=[task], task_manager=known, batch_size=BATCH, limit=N,
                                           bootstrap_iters=0, log_samples=False)['results'][task]
    return of


def peak(f):
    "Its memory in MB, in a run of its own"
    with Peak() as p: f()
    return p.mb


def raced(name, folder, model_folder):
    "A row beside the harness and one beside the limit, for each task"
    files,subject = write_files(folder/'files', n=max(N, 50)), lm.subject(model_folder)
    tok = transformers.AutoTokenizer.from_pretrained(model_folder)
    theirs,rows = harness(subject.model, tok, files), []
    for task in ('boolq', 'gsm8k'):
        record = Recorded(plain(subject))
        found = ours(subject, files, task, folder/'out', record) # warms up, and says what is to be run alone
        n = len(sheet(files, task).requests)
        runs = dict(ours=lambda: ours(subject, files, task, folder/'out', plain(subject)),
                    alone=lambda: bare(subject, record))
        if theirs: runs['harness'] = lambda: theirs(task)
        best,said = dict.fromkeys(runs, 0.), {}
        for _ in range(REPEAT): # taking turns
            for who,f in runs.items():
                said[who],seconds = timed(f)
                best[who] = max(best[who], n/seconds)
        memory = {who: peak(f) for who,f in runs.items()}
        same = not theirs or agree(task, found, said['harness'])
        about = dict(unit='requests/s', ours=best['ours'], memory_mb=memory['ours'], same_score=same, requests=n)
        peers = dict(harness='lm-evaluation-harness 0.4.13', alone='the model alone, same batches: the limit')
        rows += [dict(name=f'{task}, {name}', peer=best[who], peer_name=peers[who], peer_memory_mb=memory[who]) | about
                 for who in peers if who in best]
    return rows


def bare(subject, record):
    "The model on recorded batches"
    with alone(subject): record.again()


def agree(task, found, results):
    "Is it the same score?"
    own,theirs = SCORES[task]
    value, = found.scores[(found.scores.arm=='frozen') & (found.scores.score==own)].value
    return abs(value-results[theirs]) < 1e-9


def trained(folder):
    "The tiny GPT-2 of the tests, which has learned such items: what is around the model counts most"
    return raced('GPT-2 of 0.1M', folder, PARITY/'harness'/'gpt2')


def larger(folder):
    "A GPT-2 with random weights and the same tokenizer, which writes to the end"
    from steerlens.subjects.hf import no_bars
    to = folder/'larger'
    shutil.copytree(PARITY/'harness'/'gpt2', to)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(to)
    config.update(LARGER)
    model = transformers.GPT2LMHeadModel(config)
    with no_bars(): model.save_pretrained(to)
    millions = sum(p.numel() for p in model.parameters())/1e6
    return raced(f'GPT-2 of {millions:.0f}M, random weights', folder, to)


ABOUT = ' '.join(__doc__.split('\n\n')[-1].split())

PARTS = dict(trained=trained, larger=larger)

if __name__=='__main__': run(PARTS, ARGS, title='The task suite', about=ABOUT, batch=BATCH)
