"""Record what sae-bench's own functions say of made-up activations: `saebench.json` beside this file, which tests read

Made by sae-bench 0.6.0 in an environment of its own (it asks for numpy below 2, and works with 2 in what is used here):

    pip install --no-deps sae-bench==0.6.0 collectibles openai sae-probes
    JAXTYPING_DISABLE=1 python tests/parity/saebench.py

Nothing of steerlens is imported. Both sides draw the activations by `texts`, `words` and `Autoencoder`.
"""
import io, json, random
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
import torch
from torch.nn.functional import normalize

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
NS, FILE = [2, 5, 10, 20], Path(__file__).with_name('saebench.json')


class Autoencoder:
    "Directions with a ReLU"
    dtype, device = torch.float32, 'cpu'

    def __init__(self, W_dec, b):
        self.W_dec, self.W_enc, self.b, self.cfg = W_dec, W_dec.T.contiguous(), b, SimpleNamespace(d_sae=len(W_dec))

    def encode(self, x): return (x@self.W_enc+self.b).relu()
    def decode(self, z): return z@self.W_dec


def texts(n, generator, labels='abcd', width=24, context=9):
    "Label -> activations [n, context, width], zero after the end of each text"
    def one(i):
        x = torch.randn(n, context, width, generator=generator)
        x[:,:,i] += .8
        lengths = torch.randint(3, context+1, (n,), generator=generator)
        return x*(torch.arange(context)<lengths[:,None])[:,:,None]
    return {label: one(i) for i,label in enumerate(labels)}


def labelled():
    "Texts to learn from, to judge by, and an autoencoder"
    g = torch.Generator().manual_seed(3)
    return texts(120, g), texts(60, g), Autoencoder(normalize(torch.randn(60, 24, generator=g), dim=1),
                                                    torch.randn(60, generator=g)*.1-.3)


def words(width=64):
    "Word -> activation, words to learn from and to judge by, and an autoencoder with latents for letters and for words"
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=g)).Q
    names = [f' {l}{chr(97+i//5)}{chr(97+i%5)}' for l in LETTERS for i in range(20)]
    own = torch.randn(len(names), width, generator=g)*.35
    x = {w: 2*turn[LETTERS.index(w[1])]+o for w,o in zip(names, own)}
    letters = turn[:26]+.05*torch.randn(26, width, generator=g)
    W = torch.cat([letters, torch.stack([x[w] for w in names[::7]]), torch.randn(60, width, generator=g)])
    mixed = random.Random(1).sample(names, len(names))
    return x, mixed[:416], mixed[416:], Autoencoder(normalize(W, dim=1), torch.tensor(-1.))


def probing():
    import sae_bench.evals.sparse_probing.probe_training as p
    import sae_bench.sae_bench_utils.activation_collection as collection
    train,test,sae = labelled()
    torch.manual_seed(42)
    found = {}
    def of(who, x):
        found[f'{who}_test_accuracy'] = p.train_probe_on_activations(*x, None, False, 250, 100, 1e-2)[1]
        for k in (1, 2, 5): found[f'{who}_top_{k}_test_accuracy'] = p.train_probe_on_activations(*x, k)[1]
    of('llm', [collection.create_meaned_model_activations(s) for s in (train, test)])
    of('sae', [collection.get_sae_meaned_activations(s, sae, 125) for s in (train, test)])
    return found


def perturbation():
    import sae_bench.evals.scr_and_tpp.main as m
    import sae_bench.evals.sparse_probing.probe_training as p
    import sae_bench.sae_bench_utils.activation_collection as collection
    train,test,sae = labelled()
    torch.manual_seed(42)
    x = [collection.create_meaned_model_activations(s) for s in (train, test)]
    torch.set_grad_enabled(True)
    probes = p.train_probe_on_activations(*x, None, False, 16, 20, 1e-3, early_stopping_patience=20, l1_penalty=1e-3)[0]
    torch.set_grad_enabled(False)
    clean = m.get_probe_test_accuracy(probes, [*train], x[1], 500, False)
    effects = m.get_all_node_effects_for_one_sae(sae, probes, [*train], False, train, 125)
    lost = m.perform_feature_ablations(probes, sae, 125, test, effects, NS, [*train], 500, False)
    torch.set_grad_enabled(True)
    return m.create_tpp_plotting_dict(lost, clean)[1]


def absorption():
    import pandas as pd
    import sae_bench.evals.absorption.feature_absorption_calculator as calculator
    import sae_bench.evals.absorption.k_sparse_probing as sparse
    import sae_bench.evals.absorption.probing as p
    x_of,train,test,sae = words()
    x = [torch.stack([x_of[w] for w in side]) for side in (train, test)]
    y = [[LETTERS.index(w[1]) for w in side] for side in (train, test)]
    tables = [pd.DataFrame(dict(answer_class=side)) for side in y]
    torch.manual_seed(42)
    probe = p.train_linear_probe_for_task(*tables, torch.device('cpu'), *(s.numpy() for s in x), batch_size=64)[0]
    few = sparse.train_k_sparse_probes(sae, [*zip(train, y[0])], x[0], [*range(1, 11)], precalc_sae_acts=True)
    raw = sparse.eval_probe_and_sae_k_sparse_raw_scores(sae, probe, few, [*zip(test, y[1])], x[1])
    m = sparse.build_metrics_df(raw, sparse.sae_k_sparse_metadata(sae, probe, few, 's', 0), 10)
    sparse.add_feature_splits_to_metrics_df(m, 10)

    class Model:
        "Answers each prompt with the activation of its word"
        def to_tokens(self, prompt): return [[0]*7]
        def run_with_cache(self, prompts, names_filter):
            at = torch.stack([x_of[t.rpartition('\n')[2].split(' has')[0]] for t in prompts])
            return None, {names_filter[0]: at[:,None].repeat(1, 7, 1)}

    prompt = '{word} has the first letter:'
    judge = calculator.FeatureAbsorptionCalculator(Model(), [*x_of], 10, prompt, word_token_pos=-6)
    found = {}
    for i,letter in enumerate(LETTERS):
        seen = raw[(raw.answer_letter==letter) & (raw[f'score_probe_{letter}']>0)].token.tolist()
        latents = m[m.letter==letter].split_feats.iloc[0]
        found_in = judge.calculate_absorption(sae, seen, probe.weights[i].detach(), latents, 0, False) if seen else None
        results = found_in.word_results if seen else []
        found[letter] = dict(f1=m[m.letter==letter].f1_probe.item(), latents=latents, words=seen,
                             fraction=[float(r.absorption_fraction) for r in results],
                             full=[bool(r.is_full_absorption) for r in results])
    return found


if __name__=='__main__':
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = dict(probing=probing(), perturbation=perturbation(), absorption=absorption())
    FILE.write_text(json.dumps(found, indent=1, default=float)+'\n')
