"What a score must never do: pass on NaN, on a few long rows, on noise, or on runs that weren't asked for"
import math
import pandas as pd, pytest, torch
from steerlens.core import SteerlensError, write_json
from steerlens.sae.scores import histograms, qa, quality, show_densities, show_histograms
from steerlens.sae.splicing import show_spliced, spliced_scores
from steerlens.sae.sweeps import compared, show_compared
from steerlens.stats import check_finite
from steerlens.subjects.base import Batch, Subject, Work


class Scaled:
    "Rebuilds a multiple of everything"
    def __init__(self, times): self.times = times
    def encode(self, x): return x
    def decode(self, z): return z*self.times


class Loss:
    "A scorer of a toy whose output is its loss"
    shown = ('recovered', 'the share recovered', 'share')
    def __init__(self): self.parts = []
    def add(self, batch, mask_BT, swap, output):
        table = check_finite(pd.DataFrame(dict(loss=output.abs().sum(1))), f'{swap} outputs')
        self.parts.append(table.assign(group=batch.rows.episode, swap=swap))
    def sums(self):
        table = pd.concat(self.parts).pivot_table(index='group', columns='swap', values='loss', aggfunc='sum')
        return table.assign(n=1.)
    def scores(self, found, swap): return dict(loss=found[swap][0], recovered=None)


@pytest.fixture
def toy():
    subject = Subject(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2, bias=False)))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return subject, [Batch((x,), pd.DataFrame(dict(episode=range(8))))]

# -- NaN

def test_a_reconstruction_of_nans_is_counted_and_refused():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SteerlensError, match='9 of 9 reconstructions are NaN or infinite'): quality(Scaled(math.nan), x)


def test_a_spliced_result_of_nans_is_refused(toy):
    subject,batches = toy
    with pytest.raises(SteerlensError, match='NaN or infinite.*bfloat16 or float32'):
        spliced_scores(subject, Work(list, Loss), batches, '0.out', Scaled(math.inf), torch.zeros(4))


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name,bar', [('kl', .5), ('recovered', .9), ('l0', [1, 2])])
def test_a_score_that_is_not_finite_fails_its_gate(name, bar, value):
    assert qa({name: value}, {name: bar})['pass'][0] is False

# -- few long rows

def test_a_gate_does_not_pass_on_sinks():
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    x[::100] *= 1000
    class Sinks(Scaled):
        def encode(self, x): return x*(x.norm(dim=1, keepdim=True)>100)
    scores,_ = quality(Sinks(1), x)
    assert scores['mse_normalised']<.01 and qa(scores, dict(mse_normalised=.01))['pass'][0] is False
    assert scores['explained_variance']>.99 and qa(scores, dict(explained_variance=.9))['pass'][0] is False

# -- nothing fires, nothing is lost

def test_an_autoencoder_that_never_fires_is_reported():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    class Silent(Scaled):
        def encode(self, x): return 0*x
    assert quality(Silent(1), x)[0]['dead']==1
    silent = histograms(Silent(1), x)
    assert show_histograms(silent).title=='None of 4 latents fires in 50 rows'
    assert '100.0% of the latents' in show_densities(dict(a=silent)).title


def test_a_score_that_is_not_defined_is_said(toy):
    subject,batches = toy
    work = Work(list, Loss)
    told = spliced_scores(subject, work, batches, '0.out', Scaled(1.), torch.zeros(4))
    gate = qa(told.loc['spliced'].to_dict(), dict(recovered=.9))
    assert gate['pass'][0] is None and 'not measured' in gate.reason[0]
    assert 'is not defined' in show_spliced({'0.out': told}, work).title

# -- sweeps

def sweep(folder, scores):
    "A sweep of these variants: name -> (swept values, fvu)"
    swept = list(next(iter(scores.values()))[0])
    variants = {v: values for v,(values,_) in scores.items()}
    write_json(folder/'sweep.json', dict(phase='2_sae', subject='toy', swept=swept, variants=variants))
    for v,(_,fvu) in scores.items():
        spliced = {s: [dict(swap='spliced', kl=fvu)] for s in ('a','b')}
        found = dict(sites=[dict(site=s, fvu=fvu) for s in spliced], spliced=spliced)
        write_json(folder/v/'reports'/'2_sae'/'toy'/'metrics.json', found)


def test_every_varied_parameter_is_a_column(tmp_path):
    sweep(tmp_path, dict(x=(dict(lr=1e-3), .5), y=(dict(lr=8e-3), .4)))
    found = compared(tmp_path)
    assert found.lr.tolist()==[1e-3, 1e-3, 8e-3, 8e-3] and 'stability' not in found
    assert show_compared(found, ['lr']).title=='Best fvu 0.4 at a, lr=0.008'


def test_words_and_sites_keep_a_bar_each(tmp_path):
    sweep(tmp_path, dict(x=(dict(config={}), .5), y=(dict(config=dict(a=1)), .4), z=(dict(config=None), .3)))
    found = compared(tmp_path)
    assert sorted(set(found.config))==['null', '{"a": 1}', '{}']
    assert len(show_compared(found, ['config']).axes[0].patches)==6


def test_a_sweep_that_is_not_finished_is_refused(tmp_path):
    sweep(tmp_path, dict(x=(dict(k=1), .5), y=(dict(k=2), .4)))
    (tmp_path/'y/reports/2_sae/toy/metrics.json').unlink()
    with pytest.raises(SteerlensError, match='1 of 2 variants are not finished'): compared(tmp_path)
