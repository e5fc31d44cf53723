"What users meet on the way to a steered robot: wrong names, no OpenGL, one worker or two"
import subprocess, sys, time
import numpy as np, pandas as pd
import pytest
import torch
from conftest import SUBJECT, sh
from steerlens.core import SteerlensError, read_json
from steerlens.steer.edits import Add, Intervention
from steerlens.steer.trials import Lab
from steerlens.subjects import nano_vla
from steerlens.subjects.settle import settle


@pytest.mark.parametrize('phase', ['1', '2', '3'])
def test_a_wrong_site_is_one_line(smoke, phase):
    out = smoke/'wrong' if phase=='1' else smoke
    said = sh('steerlens', 'run', phase, SUBJECT, f'out={out}', 'sites=[lm.9.out]')
    assert said.rc==1 and said.err.strip().count('\n')==0, said.err
    assert "site 'lm.9.out'" in said.err and 'lm.' in said.err.split("site 'lm.9.out'")[1]


def test_a_phase_without_the_one_before_is_one_line(tmp_path):
    said = sh('steerlens', 'run', '2', SUBJECT, f'out={tmp_path}')
    assert said.rc==1 and said.err.strip().count('\n')==0, said.err
    assert 'could not be read' in said.err and '1_residuals' in said.err


BLIND = """
from steerlens.subjects.scenes import Scene, expert, gl_error
print(gl_error())
scene = Scene('drawer')
world = scene.reset(0)
while not scene.events(world): scene.step(world, expert('drawer_pull', scene.observe(world))[0])
print(scene.events(world))
"""


def test_without_opengl_everything_but_video_works():
    said = sh('python', '-c', BLIND, MUJOCO_GL='disable', DISPLAY='')
    assert said.rc==0, said.err
    reason,events = said.out.splitlines()
    assert reason.startswith('no video: OpenGL fails with MUJOCO_GL=disable') and 'apt install' in reason
    assert events=="['drawer_pull']"


def test_a_backend_that_is_not_there_is_named():
    "By the video's check, and by scenes, since MuJoCo itself doesn't load"
    said = sh('python', '-c', BLIND, MUJOCO_GL='nonsense')
    assert said.out.startswith('no video: OpenGL fails with MUJOCO_GL=nonsense (RuntimeError: invalid value')
    assert 'MUJOCO_GL: nonsense' in said.err.splitlines()[-1] and 'unset it' in said.err


def test_an_edit_of_nothing_changes_nothing():
    "At every site, at once, to the last bit"
    from contextlib import ExitStack
    from steerlens.subjects.base import edit
    s,g = nano_vla.subject(), torch.Generator().manual_seed(0)
    asked = torch.tensor([nano_vla.tokenize('pull the puck back')]*3)
    x = asked, torch.randn(3, 11, generator=g), torch.randn(3, 8, 4, generator=g)
    plain = s.run(*x)
    with ExitStack() as stack:
        for site in s.sites(): stack.enter_context(edit(s, site, lambda x, ctx: x))
        assert torch.equal(s.run(*x), plain)
    assert torch.equal(s.run(*x), plain)


def test_one_worker_or_two_the_same_bytes():
    trials = nano_vla.trials_of('puck_push', 6, 300)
    edits = [Intervention('lm.0.out', 'all', Add(torch.ones(128), .05)).placebo(i) for i in range(6)]
    found = []
    for workers in (1, 2):
        with Lab(settle(SUBJECT), workers, chunk=3) as lab: found.append(lab.run(trials, edits))
    for a,b in zip(*found):
        assert a.event==b.event and np.array_equal(a.actions, b.actions)


SWEEP = """
import sys, torch
from steerlens.steer.edits import Add, Intervention
from steerlens.steer.trials import Lab
from steerlens.subjects.settle import settle
lab = Lab(settle('nano_vla'), 1, chunk=2, keep=sys.argv[1]+'/chunks')
trials = lab.steering.trials('puck_push', 12, 300)
edits = [Intervention('lm.0.out', 'all', Add(torch.ones(128), .05)).placebo(i) for i in range(12)]
lab.table(trials, edits, [('puck_push', 'puck_pull')]*12).to_parquet(sys.argv[1]+'/table.parquet')
lab.close()
"""


def test_a_killed_sweep_goes_on_to_the_same_bytes(tmp_path):
    "SIGKILL as soon as so many chunks are there; the rest is done by the next run"
    whole,torn = tmp_path/'whole', tmp_path/'torn'
    for folder in (whole, torn): folder.mkdir()
    assert sh(sys.executable, '-c', SWEEP, whole).rc==0
    for n in (1, 2, 4):
        run = subprocess.Popen([sys.executable, '-c', SWEEP, torn], stdout=subprocess.DEVNULL)
        while len(list((torn/'chunks').glob('[!.]*.parquet')))<n and run.poll() is None: time.sleep(.01)
        run.kill()
        run.wait()
        assert not (torn/'table.parquet').exists()
    said = sh(sys.executable, '-c', SWEEP, torn)
    assert said.rc==0 and 'were done before' in said.out
    assert (torn/'table.parquet').read_bytes()==(whole/'table.parquet').read_bytes()
    assert not (torn/'chunks').exists()


def test_every_placebo_is_drawn_afresh(smoke):
    t = pd.read_parquet(smoke/'trials'/SUBJECT/'trials.parquet')
    placebo = t[t.method=='random']
    assert len(placebo)==placebo.random.nunique()>0


def test_the_report_s_numbers_are_the_trials(smoke):
    "Every rate in metrics.json, counted again from the table of trials"
    t = pd.read_parquet(smoke/'trials'/SUBJECT/'trials.parquet')
    for contrast,methods in read_json(smoke/'reports/3_steering'/SUBJECT/'metrics.json')['flips'].items():
        for method,said in methods.items():
            here = t[t.contrast==contrast]
            own,placebo = here[here.method==method], here[here.of==method]
            assert (said['n'], said['rate'])==(len(own), (own.event==own.b).mean())
            if not len(placebo): continue
            assert (said['placebo']['n'], said['placebo']['rate'])==(len(placebo), (placebo.event==placebo.b).mean())


def test_seeds_of_fitting_choosing_and_measuring_are_apart():
    "Published seeds: training, selection and fresh trials never meet"
    from steerlens import params
    one,three = params.resolve('1_residuals', SUBJECT)['own'], params.resolve('3_steering', SUBJECT)
    train = range(one['first_seed'], one['first_seed']+one['episodes'])
    choose = range(three['select_seed'], three['select_seed']+sum(three['select_n']))
    fresh = range(three['test_seed'], three['test_seed']+max(three['test_n'], three['base_n']))
    assert not (set(train) & set(choose) or set(choose) & set(fresh) or set(train) & set(fresh))


def test_missing_weights_are_one_line(tmp_path):
    with pytest.raises(SteerlensError, match='no weights; `make subject` trains them'): nano_vla.subject(tmp_path)


def test_no_start_is_in_both_splits(smoke):
    "Episodes of different tasks begin in the same state where they share a seed: held out together"
    folder = smoke/read_json(smoke/'reports/1_residuals'/SUBJECT/'metrics.json')['acts']
    table,splits = pd.read_parquet(folder/'decisions.parquet'), read_json(folder/'catalog.json')['splits']
    seeds = {k: set(table[table.episode.isin(v)].seed) for k,v in splits.items()}
    assert seeds['train'] and seeds['validation'] and not seeds['train'] & seeds['validation']


def test_the_shipped_weights_are_the_measured_ones():
    "Success at least 95 % overall and 90 % on each instruction, measured on these very bytes"
    from steerlens.core import read_manifest, root, sha256
    m = read_manifest(root()/'weights'/SUBJECT, 'nano_vla-weights')
    assert m['sha256']==sha256(root()/'weights'/SUBJECT/'model.safetensors')
    assert min(m['success'].values())>=.9 and sum(m['success'].values())/len(m['success'])>=.95
    assert (root()/'weights'/SUBJECT/'model.safetensors').stat().st_size < 8e6


def harvested(folder, name):
    "The activations of phase 1, and whose they are"
    from steerlens.acts.store import Acts
    from steerlens.core import check_inputs
    from steerlens.subjects.settle import settled
    acts = Acts(folder/read_json(folder/'reports'/'1_residuals'/name/'metrics.json')['acts'])
    return acts, settled(check_inputs(acts.folder, 'acts')['params'])


def test_next_words_are_those_of_a_whole_run(smoke):
    "Though the tokens before the last one are computed once, and an edit leaves nothing behind"
    from steerlens.lens.causal import cause
    acts,who = harvested(smoke, 'nano_lm')
    spoken = who.module.next_words(who.subject, acts, 6, length=16)
    clean = spoken.logits(who.subject)
    caused = cause(who.subject, acts.sites()[0], torch.randn(2, who.subject.facts['width']), spoken, alpha=2.)
    assert caused.change_N2V.abs().amax(2).min() > 0
    assert torch.equal(spoken.logits(who.subject), clean)
    seen = who.module.work().held_out(acts, 6)[0].args[0]
    every = torch.cat([torch.cat([seen[:,:1], seen[:,a:a+16]], 1) for a in range(1, seen.shape[1]-15)])
    assert (who.subject.run(every).logits[:,-1]-clean[0]).abs().amax(1).min() < 1e-3
    with pytest.raises(SteerlensError, match='no held-out window has 9999 tokens'):
        who.module.next_words(who.subject, acts, length=9999)


def test_directions_name_their_words_where_the_layer_is_chosen(smoke):
    from steerlens.lens.compare import halved, naming
    from steerlens.steer.contrasts import contrasts
    acts,who = harvested(smoke, SUBJECT)
    steering = who.module.steering()
    spoken = who.module.next_words(who.subject, acts, 4)
    assert spoken.logits(who.subject).shape==(4*2*3, len(nano_vla.WORDS))
    one,other = halved(contrasts(steering, acts), acts)
    for cell,(c,*_) in one.items():
        for stream,sides in c.rows.items():
            episode = acts.rows(stream).set_index('row_id').episode
            own,rest = (set(episode[np.concatenate(h[cell][0].rows[stream])]) for h in (one, other))
            assert own and rest and not own & rest
    table,facts = naming(who.subject, steering, acts, {'lm.0.out': None}, ['diffmean'], shuffles=20)
    assert set(table.half)=={'choose', 'measure'} and facts['hit_n']==6 and facts['random'] > 0
