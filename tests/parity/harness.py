"""Record what lm-evaluation-harness 0.4.13 asks and scores: the folder `harness` beside this file, which the tests read

    python3.11 -m venv ENV
    ENV/bin/pip install 'lm_eval[hf]==0.4.13'
    ENV/bin/pip install --target OLD --no-deps 'transformers==4.57.1'
    ENV/bin/python tests/parity/harness.py OLD

Nothing of steerlens is imported. The files are written by `harness_files.py`. Two tiny models answer: a GPT-2 that is
trained here for a minute on more of the same, so that scores are neither 0 nor 1, and a Llama with drawn weights, whose
tokenizer begins each text with a token of its own. SQuAD's scores are those of the authors' script, which the harness
gets from the network and transformers before version 5 has in `data/metrics`.
"""
import hashlib, json, random, sys, tempfile, types, zlib
from pathlib import Path
import numpy as np, torch
import datasets, evaluate, lm_eval
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
import harness_files as made

VOCAB,WINDOW,OUT = 448, 640, Path(__file__).parent/'harness'
TEXT = dict(gsm8k=lambda d: f'Question: {d["question"]}\nAnswer: {d["answer"]}\n\n',
            boolq=lambda d: f'{d["passage"]}\nQuestion: {d["question"]}?\nAnswer: {["no", "yes"][d["answer"]]}\n\n')


def squad_text(d):
    p = d['paragraphs'][0]
    qa = p['qas'][0]
    answer = qa['answers'][0]['text'] if qa['answers'] else 'unanswerable'
    return (f'Title: {d["title"]}\n\nBackground: {p["context"]}\n\nQuestion: {qa["question"]}\n\nAnswer: {answer}\n\n')


def texts(seed, n):
    g = random.Random(seed)
    for _ in range(n):
        yield from (TEXT['gsm8k'](d) for d in made.sums(g, 6))
        yield from (TEXT['boolq'](d) for d in made.passages(g, 6))
        yield from (squad_text(d) for d in made.articles(g, 6))


def tokenizer(folder, begins=False):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    how = dict(special_tokens=['<|end|>', '<|begin|>'][:1+begins], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(texts(1, 50), trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False, **how))
    if begins: t.post_processor = processors.TemplateProcessing('<|begin|> $A', special_tokens=[('<|begin|>', 1)])
    bos = dict(bos_token='<|begin|>') if begins else {}
    PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<|end|>', pad_token='<|end|>', **bos).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def trained(folder, steps=700, T=256, batch=16):
    "A GPT-2 that has read a lot of such items; once, since training gives other bytes on another machine"
    if (folder/'model.safetensors').exists(): return opened(folder)
    torch.manual_seed(0)
    tok = tokenizer(folder)
    config = GPT2Config(vocab_size=VOCAB, n_positions=WINDOW, n_embd=48, n_layer=2, n_head=4, bos_token_id=0,
                        eos_token_id=0, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
    model = GPT2LMHeadModel(config)
    ids = torch.tensor(sum((tok.encode(t) for t in texts(2, 600)), []))
    opt = torch.optim.AdamW(model.parameters(), 6e-3)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 6e-3, steps)
    for step in range(steps):
        at = torch.randint(len(ids)-T, (batch,))
        begin = torch.randint(WINDOW-T, (1,)) # every position is met
        x = ids[at[:,None]+torch.arange(T)]
        loss = model(x, labels=x, position_ids=begin+torch.arange(T)[None]).loss
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); sched.step()
        if step%100==0: print(step, loss.item(), flush=True)
    model.half().save_pretrained(folder)
    return opened(folder)


def opened(folder):
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def drawn(folder):
    "A Llama whose weights the test can draw again"
    tok = tokenizer(folder, begins=True)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=WINDOW, bos_token_id=1, eos_token_id=0))
    for name,p in model.named_parameters():
        if p.ndim<2: continue
        g = np.random.RandomState(zlib.crc32(name.encode()))
        p.data = torch.from_numpy(g.standard_normal(p.shape).astype('f4')*.3)
    model.config.save_pretrained(folder)
    return model.eval(), tok


def local(folder):
    "What the harness would load from the network, from these files"
    def rows(name): return datasets.Dataset.from_list([json.loads(l) for l in (folder/name).read_text().splitlines()])
    def boolq():
        found = rows('boolq.jsonl')
        return found.map(lambda d, i: dict(label=int(d['answer']), idx=i), with_indices=True)
    def squad():
        data = json.loads((folder/'squadv2.json').read_text())['data']
        def lists(answers): return {k: [x[k] for x in answers] for k in ('text', 'answer_start')}
        flat = [dict(id=q['id'], title=a['title'], context=p['context'], question=q['question'],
                     answers=lists(q['answers'])) for a in data for p in a['paragraphs'] for q in p['qas']]
        return datasets.Dataset.from_list(flat)
    known = {'openai/gsm8k': lambda: dict(train=rows('gsm8k_train.jsonl'), test=rows('gsm8k.jsonl')),
             'aps/super_glue': lambda: dict(train=boolq(), validation=boolq()),
             'lighteval/squad_v2': lambda: dict(train=squad(), validation=squad())}
    datasets.load_dataset = lambda path, *args, **kw: datasets.DatasetDict(known[path]())


def authors_script(old):
    "SQuAD's scores by the script of its authors, as an older transformers has it"
    import importlib.util
    file = Path(old)/'transformers/data/metrics/squad_metrics.py'
    stubs = {n: {} for n in ('old', 'old.data', 'old.data.metrics', 'old.models')}
    stubs |= {'old.models.bert': dict(BasicTokenizer=None),
              'old.utils': dict(logging=types.SimpleNamespace(get_logger=lambda name: None))}
    for name,has in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
        vars(sys.modules[name]).update(has)
    spec = importlib.util.spec_from_file_location('old.data.metrics.squad_metrics', file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    def compute(predictions, references):
        asked = [types.SimpleNamespace(qas_id=r['id'], answers=[dict(text=t) for t in r['answers']['text']])
                 for r in references]
        texts = {p['id']: p['prediction_text'] for p in predictions}
        return script.squad_evaluate(asked, texts, {p['id']: p['no_answer_probability'] for p in predictions})
    return compute


def marks(compute):
    "What the harness and the authors' script make of answers that no model wrote"
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks import TaskManager
    config = next(iter(lm_eval.tasks.get_task_dict(['gsm8k'], TaskManager()).values())).config
    how = {k: config.metric_list[0][k] for k in ('ignore_case', 'ignore_punctuation', 'regexes_to_ignore')}
    filters = {f['name']: RegexFilter(**{k: v for k,v in f['filter'][0].items() if k!='function'})
               for f in config.filter_list}
    out = []
    for d in made.spoken(random.Random(5), 300):
        one = compute([dict(id='x', prediction_text=d['text'], no_answer_probability=0.)],
                      [dict(id='x', answers=dict(text=d['golds']))])
        found = dict(exact=one['exact']/100, f1=one['f1']/100)
        for name,f in filters.items():
            number = f.apply([[d['worked']]], [None])[0][0]
            found[name] = float(exact_match_hf_evaluate([number], [d['answer']], **how)['exact_match'])
        out.append(found)
    return out


def short(text): return hashlib.sha256(text.encode()).hexdigest()[:16]


def recorded(lm, tasks):
    "Prompts, answers and scores"
    found = lm_eval.simple_evaluate(lm, tasks=tasks, batch_size=8, log_samples=True, bootstrap_iters=0)
    out = {}
    for name,samples in found['samples'].items():
        items = {}
        for s in samples: # one for each way to filter
            args = [a if isinstance(a, tuple) else tuple(a.values()) for a in
                    (s['arguments'] if isinstance(s['arguments'], list) else list(s['arguments'].values()))]
            new = dict(prompt=short(args[0][0]), answers=[r[0] for r in s['resps']], marks={})
            own = items.setdefault(s['doc_id'], new)
            own['marks'] |= {f'{m} {s["filter"]}': s[m] for m in s['metrics'] if isinstance(s[m], (int, float))}
            if s['doc_id']==0: out[name] = dict(first=args[0][0], continuations=[a[1] for a in args])
        whole = {k: v for k,v in found['results'][name].items() if isinstance(v, (int, float)) and 'stderr' not in k}
        out[name] |= dict(items=[items[i] for i in sorted(items)], scores=whole)
    return out


if __name__=='__main__':
    files = made.write_files(tempfile.mkdtemp())
    local(files)
    compute = authors_script(sys.argv[1])
    evaluate.load = lambda name: types.SimpleNamespace(compute=compute)
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files.iterdir())}
    said = dict(version='0.4.13', files=hashes, marks=marks(compute))
    for name,make in dict(gpt2=trained, llama=drawn).items():
        model,tok = make(OUT/name)
        lm = HFLM(pretrained=model, tokenizer=tok, batch_size=8, device='cpu')
        said[name] = recorded(lm, ['gsm8k', 'boolq', 'squadv2'] if name=='gpt2' else ['boolq', 'squadv2'])
    (OUT/'recorded.json').write_text(json.dumps(said)+'\n')
    for name in ('gpt2', 'llama'):
        for task,found in said[name].items(): print(name, task, found['scores'])
