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
