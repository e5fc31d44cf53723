"The record in the program itself: a page of each run, a run made again, release notes from the committed runs"
import re, shutil, sys
import pytest
from steerlens.core import read_json, write_json
from conftest import ROOT, sh


def steerlens(*args, **env): return sh(sys.executable, '-c', 'from steerlens.cli import main; main()', *args, **env)


def test_every_committed_run_has_a_record():
    "In the showcase, whose manifests are older than what is kept today"
    from steerlens.record import parameters, record_html, run_named
    for metrics in sorted((ROOT/'reports/showcase').glob('[1-8]*_*/nano_lm/metrics.json')):
        run = run_named(metrics.parent)
        assert parameters(run)['subject']==run.subject, run.name
        html = record_html(run)
        assert '<script' not in html and not re.findall(r'(?:src|href)="?(?:https?:|//)', html)


def test_report_makes_and_links_records(tmp_path):
    shutil.copytree(ROOT/'reports/showcase/2_sae', tmp_path/'reports/2_sae')
    said = steerlens('report', '--out', tmp_path)
    assert said.rc==0, said.err
    html = (tmp_path/'reports/index.html').read_text()
    for subject in ('nano_lm', 'walker'):
        assert f'href="2_sae/{subject}/record.html"' in html
        assert (tmp_path/f'reports/2_sae/{subject}/record.html').exists()


@pytest.mark.parametrize('found', [{}, [], dict(format='another')])
def test_a_manifest_of_another_kind_is_refused_in_one_line(tmp_path, found):
    write_json(tmp_path/'reports/2_sae/it/manifest.json', found)
    write_json(tmp_path/'reports/2_sae/it/metrics.json', {})
    said = steerlens('record', tmp_path/'reports/2_sae/it')
    assert said.rc==1 and said.err.count('\n')==1 and 'no manifest of steerlens' in said.err, said.err


def test_gone_inputs_are_said_before_work(tmp_path):
    shutil.copytree(ROOT/'reports/showcase/1_residuals', tmp_path/'reports/1_residuals')
    said = steerlens('reproduce', tmp_path/'reports/1_residuals/smollm2', '--to', tmp_path/'again')
    assert said.rc==2 and 'SmolLM2' in said.err and 'is gone' in said.err and not (tmp_path/'again').exists(), said.err


SWAPPED = """import json, os, shutil, sys
from pathlib import Path
from steerlens.core import begin_phase, manifest, sha256
from steerlens.subjects.settle import settle
name,here = sys.argv[1], Path(sys.argv[2])
shutil.copytree(f'weights/{name}', here/'it')
files = sorted(p for p in (here/'it').iterdir() if p.suffix in ('.json', '.safetensors') and p.name!='manifest.json')
was = {p.as_posix(): sha256(p) for p in files}
begin_phase()
settle(name, model=str(here/'it'))
weights = here/'it/model.safetensors'
shutil.copy(weights, here/'new')
with open(here/'new', 'ab') as f: f.write(b' ')
os.replace(here/'new', weights) # somebody trains it again, and the new file has another inode
m = manifest(here/'report', 'toy', {}, inputs=files)
print(json.dumps([m['inputs']==was, m['changed_meanwhile']==[weights.as_posix()]]))"""


@pytest.mark.parametrize('subject', ['nano_lm', 'nano_vla', 'walker', 'set_model'])
def test_weights_replaced_while_a_phase_runs_are_recorded_as_they_were_loaded(tmp_path, subject):
    said = sh(sys.executable, '-c', SWAPPED, subject, tmp_path.resolve(), PYTHONPATH=str(ROOT))
    assert said.out.endswith('[true, true]\n') and said.err.count('changed while this ran')==1, said.out+said.err


@pytest.mark.slow
def test_a_phase_made_again_is_the_same_and_another_seed_is_not(tmp_path):
    "Phases 1 and 2 of nano_lm, small"
    for phase in '12':
        said = steerlens('run', phase, 'nano_lm', '--params', 'params/smoke.yaml', f'out={tmp_path}/first')
        assert said.rc==0, said.err
    run = tmp_path/'first/reports/2_sae/nano_lm'
    same = steerlens('reproduce', run, '--to', tmp_path/'again')
    assert same.rc==0 and same.out.count('equal to the last digit')==2, same.out+same.err
    m = read_json(run/'manifest.json')
    m['run']['parameters']['seed'] = 1
    write_json(run/'manifest.json', m)
    other = steerlens('reproduce', run, '--to', tmp_path/'other')
    assert other.rc==1 and 'sites.blocks.1.hook_resid_post.fvu' in other.out, other.out+other.err


def test_release_notes_take_their_numbers_from_metrics(tmp_path):
    "A number that changes in metrics.json changes in the notes"
    shutil.copytree(ROOT/'reports/showcase/2_sae', tmp_path/'2_sae')
    def notes(): return sh(sys.executable, 'site/release.py', '--showcase', tmp_path, PYTHONPATH=str(ROOT))
    before = notes()
    assert before.rc==0 and '4 of 4 gates' in before.out, before.err
    f = tmp_path/'2_sae/nano_lm/metrics.json'
    m = read_json(f)
    m['sites'][0]['explained_variance'] = .1234
    write_json(f, m)
    assert '12.3%' in notes().out and '12.3%' not in before.out
    shutil.rmtree(tmp_path/'2_sae')
    assert 'no finished run' in notes().err
