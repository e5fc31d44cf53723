"pi0.5 from files to steered decisions, in small: the phases as a user runs them, and numbers that could be wrong"
import numpy as np, pandas as pd, pytest
import torch
from steerlens.acts.store import Acts
from steerlens.codes.build import build
from steerlens.core import read_json, read_manifest, threads
from steerlens.explain.carried import asked, carried, without
from steerlens.explore.bench import open_bench
from steerlens.running import execute
from steerlens.sae.models import load_sae
from steerlens.steer.edits import Add, Denoise, Intervention, as_computed, intervened
from steerlens.subjects import pi05, pi05_tiny
from steerlens.subjects.base import tap

N, WORDS, PATCHES, CHUNK = 40, 24, 8, 5 # Decisions in smoke.yaml; tokens of a prompt and of two cameras; actions


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    "Phases 1 to 3"
    folder = tmp_path_factory.mktemp('pi05_tiny')
    for phase in ('1_residuals', '2_sae', '3_steering'):
        execute(phase, 'pi05_tiny', [f'out={folder}'], ['params/smoke.yaml'], progress=False)
    return folder


def metrics(out, phase): return read_json(out/'reports'/phase/'pi05_tiny'/'metrics.json')
def acts_of(out): return Acts(out/metrics(out, '1_residuals')['acts'])


def test_every_decision_is_harvested_in_both_verbs(out):
    acts,m = acts_of(out), metrics(out, '1_residuals')
    assert m['decisions']==2*N and m['rows']==dict(image=2*N*PATCHES, instruction=2*N*WORDS, decision=2*N*CHUNK*2)
    rows = acts.rows('instruction')
    assert (rows.groupby(['episode', 'step']).asked.nunique()==2).all() and (rows.own.mean()==.5)
    verbs = rows[rows.position==PATCHES+3] # <bos> Task : VERB
    assert (verbs.token==verbs.asked).all()
    assert sorted(acts.rows('decision').denoise.unique())==[0, 9], 'the denoising steps that were asked for'
    for s in acts.streams:
        for site in acts.sites(s): assert acts.x(site, s).isfinite().all() and acts.x(site, s).std() > 0


def test_held_out_demonstrations_are_the_last_of_each_task(out):
    splits = acts_of(out).catalog['splits']
    assert sorted(splits['validation'])==[4, 5, 10, 11] and not {*splits['train']} & {*splits['validation']}


def test_words_before_the_verb_are_moved_by_it_too(out):
    "The prefix attends both ways, so its first layer moves all tokens, and the verb's most of all"
    moved = {(d['site'], d['stream']): d['the other verb'] for d in metrics(out, '1_residuals')['moved']}
    assert 0 < moved['lm.0.out', 'image'] < moved['lm.0.out', 'instruction'] and moved['expert.1.out', 'decision'] > 0


def test_autoencoders_are_scored_on_held_out_rows(out):
    for site in metrics(out, '2_sae')['sites']:
        assert site['l0']==pytest.approx(8, abs=.5) and 0 < site['explained_variance'] <= 1
    for scores in metrics(out, '2_sae')['spliced'].values():
        by = {row[next(k for k in row if row[k] in ('clean', 'spliced', 'mean', 'zero'))]: row for row in scores}
        assert by['clean']['action_r2']==pytest.approx(1) and np.isfinite(by['spliced']['action_r2'])


def test_every_arm_is_there_beside_its_placebo(out):
    t = pd.read_parquet(out/'trials'/'pi05_tiny'/'trials.parquet')
    assert t.groupby(['contrast', 'method']).size().to_dict()=={
        (c, m): 6*(2 if m=='random' else 1) for c in ('open->close', 'close->open')
        for m in ('sae_topk', 'diffmean', 'random', 'baseline', 'swap')}
    assert t.outcome.isin(['flip', 'stay', 'neither']).all() and t[['to_open', 'to_close']].notna().all(axis=None)
    edited = t[t.site.notna()]
    assert (edited.n_edits==1).all(), 'the prefix is computed once a decision'
    assert {*edited.site}=={'lm.0.out'} and {*edited.stream} <= {'instruction', 'all'}
    held = {'demo_4', 'demo_5'}
    assert {d.rsplit('/', 1)[1] for d in t.demo} <= held
    chosen = pd.read_parquet(out/'trials'/'pi05_tiny'/'selection.parquet')
    assert {*zip(chosen.site, chosen.stream)}=={('lm.0.out', 'instruction'), ('lm.0.out', 'all')}


def test_what_was_chosen_on_is_not_measured_on():
    subject,how = pi05_tiny.subject(), pi05_tiny.steering()
    with threads(1): chose,measured = (how.run(subject, how.trials('open', 8, seed)) for seed in (5000, 20_000))
    assert not {e.demo for e in chose} & {e.demo for e in measured}


def test_the_same_from_a_folder(out, tmp_path):
    "A user's way: module=pi05 with a checkpoint's folder gives the very decisions of pi05_tiny"
    own = pi05_tiny.make(tmp_path)
    subject,acts = pi05.subject(**own), acts_of(out)
    acts.rows('image')
    ours = pi05.again(acts.folder, pi05.decided(acts), lambda params: (subject.reading, subject.world.demos))[0]
    theirs = pi05_tiny.held_out(acts)[0]
    assert torch.equal(subject.run(*ours.args, **ours.kwargs), pi05_tiny.subject().run(*theirs.args, **theirs.kwargs))
    params = dict(model=own['model'], load={k: own[k] for k in ('tokenizer', 'sizes', 'demos')} | dict(dtype='auto'))
    assert pi05.files_of(params)[0].cfg==subject.reading.cfg


def test_what_the_head_says_next(out):
    spoken = pi05_tiny.next_words(pi05_tiny.subject(), acts_of(out), 6)
    z = spoken.logits(pi05_tiny.subject())
    assert z.shape==(6, len(pi05_tiny.WORDS)) and z.std() > 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_edits_in_any_precision(dtype):
    "A vector added to two trials of three; what is not edited stays, to the last bit"
    subject,how = pi05_tiny.subject(dtype=dtype), pi05_tiny.steering()
    trials = how.trials('open', 3, 20_000)
    v = torch.randn(24, generator=torch.Generator().manual_seed(0))
    edits = [None, Intervention('expert.1.out', 'decision', Add(v)),
             Intervention('expert.1.out', 'decision', Add(v), Denoise((9,)))]
    with threads(1):
        plain = how.run(subject, trials)
        with intervened(subject, edits) as made, tap(subject, 'expert.1.out') as seen: now = how.run(subject, trials)
    assert made.n_edits.tolist()==[0, 10, 1] and len(seen['expert.1.out'])==10
    same = [np.array_equal(a.actions, b.actions) for a,b in zip(plain, now)]
    assert same==[True, False, False]
    assert as_computed(torch.ones(1, dtype=torch.bfloat16)).dtype==torch.float32


@pytest.mark.slow
def test_phase_4_asks_it_too(out):
    execute('4_tokens', 'pi05_tiny', [f'out={out}'], ['params/smoke.yaml'], progress=False)
    assert metrics(out, '4_tokens')['subject']=='pi05_tiny'


@pytest.mark.parametrize('site', ['lm.0.out', 'expert.1.out'])
def test_a_decision_is_explained_through_all_its_denoising_steps(out, site):
    "What is said of a latent is what switching it off does"
    folder = out/'sae'/'pi05_tiny'/site
    codes = build(acts_of(out), load_sae(folder, site), out/'codes'/site, site, source=folder)
    bench = open_bench(codes.folder)
    line = asked(bench, 1)
    found, = carried(bench, line)
    some = found.latents[np.argsort(-np.abs(found.effects))[:4]].tolist()
    ahead,_ = without(bench, line.iloc[0].to_dict(), [(), *((f,) for f in some)])
    stated = dict(zip(found.latents.tolist(), found.effects))
    assert found.said.split()[0] in pi05.AXES and found.ahead > 0
    assert [stated[f] for f in some]==pytest.approx((ahead[0]-ahead[1:]).tolist(), rel=.3)
