"What a small run of all phases leaves behind"
import re
from itertools import product
import pytest
from steerlens import params
from steerlens.core import read_json
from conftest import RUNS, sh


@pytest.mark.parametrize('phase,subject', RUNS)
def test_phase_ran(smoke, phase, subject):
    ran = read_json(smoke/'reports'/phase/f'{subject}.ipynb')
    asked = params.resolve(phase, subject, [f'out={smoke}'], ['params/smoke.yaml'])
    assert ran['metadata']['papermill']['parameters']==asked
    assert read_json(smoke/'reports'/phase/subject/'metrics.json')


def test_nothing_is_left_over(smoke):
    left = [p for p in smoke.rglob('*') if p.name.startswith(('.tmp-', '.old-')) or '.failed.' in p.name]
    assert not left


def test_manifests_lead_back(smoke):
    found = sorted(smoke.rglob('manifest.json'))
    assert found
    for m in map(read_json, found):
        assert m['format'].startswith('steerlens.') and m['version']>=1 and m['packages']['torch']
        assert set(m) >= {'params', 'params_sha256', 'inputs', 'git', 'seed', 'created'}


def test_figures_carry_no_date(smoke):
    "The same numbers give the same file"
    assert not [p for p in smoke.rglob('*.svg') if '<dc:date>' in p.read_text()]


def test_a_sweep_plans_every_combination(tmp_path):
    config = ['sweep=params/sweeps/nano_lm.yaml', f'out={tmp_path}']
    r = sh('snakemake', '--dry-run', '--printshellcmds', '--config', *config, '--', 'sweep')
    assert r.rc==0, r.err
    plan = read_json(tmp_path/'sweeps/nano_lm/sweep.json')
    planned = {tuple(v[k] for k in ('k', 'd_sae', 'seed')) for v in plan['variants'].values()}
    assert planned==set(product((8, 16, 32, 64), (1024, 4096), (0, 1)))
    assert {*re.findall(r'(\w+)/params\.yaml', r.out+r.err)}=={*plan['variants']}


@pytest.mark.parametrize('subject', ['nano_vla', pytest.param('nano_lm', marks=pytest.mark.slow)])
def test_lenses_stand_beside_their_placebos(smoke, subject):
    m = read_json(smoke/'reports/4_tokens'/subject/'metrics.json')
    kl = {(t['who'], t['layer']): t['kl'] for t in m['layers']}
    last = max(layer for _,layer in kl)
    assert abs(kl['logit lens',last]) < 1e-5 # there the lens is the model
    for layer in range(last): assert kl['tuned lens',layer] < min(kl['logit lens',layer], kl['shuffled',layer])
    assert {'own', 'random', 'unrelated', 'raising'} <= m['causes'].keys()
    assert {t['space'] for t in m['families']}=={'residual', 'latent', 'token'}
    assert f'{m["naming"]["hit_rate"]:.0%} of {m["naming"]["hit_n"]}' in m['says']


def test_actions_are_read_in_random_company(smoke):
    m = read_json(smoke/'reports/4_tokens/nano_vla/metrics.json')
    slopes = [t for t in m['slopes'] if t['axis']=='all']
    assert len(slopes)==12 and all(t['random'] > 0 and t['q'] >= t['p'] for t in slopes)
    assert min(t['error'] for t in m['reach'] if t['precision']=='double') < 1e-5
    assert {t['by'] for t in m['rollouts']}=={'lens', 'decision', 'length'}


@pytest.mark.slow
def test_what_cannot_be_asked_is_said(smoke):
    m = read_json(smoke/'reports/4_tokens/set_model/metrics.json')
    assert m['says'].startswith('Of 1,024 latents at hidden.out') and m['latents_beyond']['n']==1024
    assert 'Not asked, since it takes no actions: actions, what rollouts did, arrows.' in m['says']
    assert 'Not asked, since its module has no next_words(): what latents cause.' in m['says']


def test_who_cannot_do_sums_gets_no_rate(smoke):
    "Phase 1 asks whoever can be asked in words; a 0 of a model of Python would say nothing about worked examples"
    found = {s: read_json(smoke/'reports/1_residuals'/s/'metrics.json') for s in ('nano_lm', 'nano_vla')}
    worked = found['nano_lm']['baselines']['worked']
    assert not worked['able'] and {w['exact_match'] for w in worked['ways']}=={None} and 'beyond' in worked['says']
    assert 'worked' not in found['nano_vla'].get('baselines', {})
    assert not (smoke/'reports/1_residuals/nano_lm/worked.svg').exists()
