"pi0.5's files as they come from elsewhere: whole, in parts, spoilt; and nothing of a fault is loaded"
import json, shutil
from dataclasses import replace
from functools import cache
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from conftest import ROOT
from steerlens.acts.harvest import gather
from steerlens.core import SteerlensError, read_json, write_json
from steerlens.subjects.base import Batch, tap
from steerlens.subjects.pi05 import as_subject
from steerlens.subjects.pi05_files import EMBED, HEAD, UNUSED, load, stored
from steerlens.subjects.pi05_model import Pi05, Pi05Config, draw

RECORDED = safe_open(ROOT/'tests'/'parity'/'pi05.safetensors', 'pt')
SAYS = {k: json.loads(v) for k,v in RECORDED.metadata().items()}
KINDS = dict(pi05=Pi05Config(**SAYS['sizes']), pi0=Pi05Config(**SAYS['sizes'] | dict(state='suffix')))
Q = 'paligemma_with_expert.gemma_expert.model.layers.1.self_attn.q_proj.weight'


@cache
def policy(kind): return draw(Pi05(KINDS[kind]))


def tensors(kind): return {k: v.clone() for k,v in policy(kind).state_dict().items()}


def as_lerobot(folder, kind):
    save_file({f'model.{k}': v for k,v in (tensors(kind) | dict.fromkeys(UNUSED, torch.ones(61, 24))).items()},
              folder/'model.safetensors')


def as_openpi(folder, kind): save_model(policy(kind), folder/'model.safetensors')


def in_parts(folder, kind):
    "As large checkpoints come; names in no order"
    as_lerobot(folder, kind)
    whole,where = load_file(folder/'model.safetensors'), {}
    (folder/'model.safetensors').unlink()
    for i in range(3):
        file = f'model-{i+1:05}-of-00003.safetensors'
        part = dict(list(whole.items())[i::3])
        save_file(part, folder/file)
        where |= dict.fromkeys(part, file)
    write_json(folder/'model.safetensors.index.json', dict(metadata=dict(total_size=1), weight_map=where))


SOURCES = dict(lerobot=as_lerobot, openpi=as_openpi, parts=in_parts)


def acted(model, kind):
    x = [RECORDED.get_tensor(k) for k in ('pi05.pixels', 'in.tokens', 'in.noise', 'in.state')]
    state = x[3:] if kind=='pi0' else []
    seen = torch.tensor([1,1,0]).repeat_interleave(4).expand(2,-1).bool()
    there = torch.cat([seen, RECORDED.get_tensor('in.mask')], 1)
    with torch.inference_mode(): return model.sample_actions(x[0].transpose(0,1), *x[1:3], *state, attention_mask=there)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('source', SOURCES)
def test_every_source_acts_as_lerobot_does(tmp_path, source, kind):
    SOURCES[source](tmp_path, kind)
    model = load(tmp_path, KINDS[kind])
    assert (acted(model, kind)-RECORDED.get_tensor(f'{kind}.actions')).abs().max() < 1e-5
    assert model.get_parameter(HEAD) is model.get_parameter(EMBED)


@pytest.mark.parametrize('kind,names', [('pi05', 'names5'), ('pi0', 'names0')])
def test_names_in_a_file_are_lerobots_own(tmp_path, kind, names):
    as_lerobot(tmp_path, kind)
    with safe_open(tmp_path/'model.safetensors', 'pt') as f:
        assert {k: f.get_slice(k).get_shape() for k in f.keys()}==SAYS[names]


def test_an_unembedding_of_its_own_is_kept(tmp_path):
    own = tensors('pi05')
    own[HEAD] = own[HEAD]+1
    save_file(own, tmp_path/'model.safetensors')
    model = load(tmp_path, KINDS['pi05'])
    assert torch.equal(model.get_parameter(HEAD), own[HEAD]) and torch.equal(model.get_parameter(EMBED), own[EMBED])
    assert torch.equal(acted(model, 'pi05'), acted(policy('pi05'), 'pi05'))


def test_what_is_loaded_no_longer_needs_the_file(tmp_path):
    "A mapped file that is written over would change a model that had only borrowed its pages"
    as_openpi(tmp_path, 'pi05')
    model = load(tmp_path, KINDS['pi05'])
    file = tmp_path/'model.safetensors'
    with open(file, 'r+b') as f:
        f.seek(-4096, 2)
        f.write(b'\xff'*4096)
    assert torch.equal(acted(model, 'pi05'), acted(policy('pi05'), 'pi05'))


def changed(**what): return lambda whole: whole | {k: f(whole) for k,f in what.items()}


def dropped(*names): return lambda whole: {k: v for k,v in whole.items() if k not in names}


SPOILT = {
    '1 missing (': dropped(Q),
    '1 unexpected (extra)': changed(extra=lambda w: torch.ones(1)),
    'q_proj.weight [24, 64] for [64, 24]': lambda w: w | {Q: w[Q].T.contiguous()},
    'q_proj.weight I64': lambda w: w | {Q: w[Q].long()},
    'NaN or infinite': lambda w: w | {Q: w[Q]*float('nan')},
    'these are weights of pi0, not of pi0.5': lambda w: tensors('pi0'),
    '0 of 111 tensors are there': lambda w: {f'policy.{k}': v for k,v in w.items()},
    '2 missing (': dropped(EMBED, HEAD, Q),
}


@pytest.mark.parametrize('says', SPOILT)
def test_spoilt_weights_are_told_in_one_line(tmp_path, says):
    save_file(SPOILT[says](tensors('pi05')), tmp_path/'model.safetensors')
    with pytest.raises(SteerlensError) as e: load(tmp_path, KINDS['pi05'])
    assert says in str(e.value) and '\n' not in str(e.value)


def index(folder): return folder/'model.safetensors.index.json'
def part(folder): return sorted(folder.glob('*-of-*'))[1]
def torn(folder): part(folder).write_bytes(part(folder).read_bytes()[:-9])
def elsewhere(folder): write_json(index(folder), dict(weight_map=dict(a='../model.safetensors')))


def promised(folder):
    told = read_json(index(folder))
    told['weight_map']['ghost'] = part(folder).name
    write_json(index(folder), told)


def twice(folder):
    own = load_file(part(folder))
    save_file(own | {k.removeprefix('model.'): v.clone() for k,v in list(own.items())[:1]}, part(folder))


DAMAGED = {
    'not a whole safetensors file': torn,
    '1 of 3 files missing': lambda folder: part(folder).unlink(),
    'files beside it': elsewhere,
    'tensors are not in their files (ghost)': promised,
    'is there twice': twice,
    'not whole JSON': lambda folder: index(folder).write_text('{"weight_map": '),
    'no weight_map': lambda folder: write_json(index(folder), {}),
    'one of them': lambda folder: shutil.copy(part(folder), folder/'model.safetensors'),
    'no weights': lambda folder: index(folder).unlink(),
}


@pytest.mark.parametrize('says', DAMAGED)
def test_damaged_files_are_told_in_one_line(tmp_path, says):
    in_parts(tmp_path, 'pi05')
    DAMAGED[says](tmp_path)
    with pytest.raises(SteerlensError) as e: stored(tmp_path)
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type_is_read(tmp_path, dtype):
    save_file({k: v.to(dtype) for k,v in tensors('pi05').items()}, tmp_path/'model.safetensors')
    actions = RECORDED.get_tensor('pi05.actions')
    assert (acted(load(tmp_path, KINDS['pi05']), 'pi05')-actions).abs().max() < (1e-5 if dtype==torch.float64 else .1)


def test_rows_don_t_disturb_each_other():
    "Alone, together, and beside padding"
    model,x = policy('pi05'), acted(policy('pi05'), 'pi05')
    pixels,tokens,noise = (RECORDED.get_tensor(k) for k in ('pi05.pixels', 'in.tokens', 'in.noise'))
    real = torch.cat([torch.arange(12)[None]<8, RECORDED.get_tensor('in.mask')[:1]], 1)
    tokens = tokens.clone()
    tokens[0,7:] = 60 # behind the prompt
    with torch.inference_mode():
        alone = model.sample_actions(pixels.transpose(0,1)[:1], tokens[:1], noise[:1], attention_mask=real)
    assert (alone-x[:1]).abs().max() < 1e-6


def test_prefix_expert_and_condition_are_rows_of_one_pass():
    "What isn't there, an absent camera or padding, is no row"
    cfg = replace(KINDS['pi05'], cameras=3)
    who = as_subject(draw(Pi05(cfg)))
    x = [RECORDED.get_tensor(k) for k in ('pi05.pixels', 'in.tokens', 'in.noise')]
    there = torch.cat([torch.arange(12).expand(2, -1)<8, RECORDED.get_tensor('in.mask')], 1)
    words = [[f'token {t}' for t in range(24)]]*2
    rows = pd.DataFrame(dict(episode=[0, 1], step=[0, 5]))
    batch = Batch((x[0].transpose(0, 1), *x[1:]), rows, dict(lm=words), dict(attention_mask=there))
    sites = ['lm.1.out', 'lm.1.mlp.down_proj.out', 'expert.0.out', 'expert.2.out', 'adarms.in']
    with tap(who, sites) as acts: who.run(*batch.args, **batch.kwargs)
    found = gather(who, batch, acts)
    assert {k: len(v[0]) for k,v in found.items()}==dict(image=16, instruction=19, decision=100, adarms=20)
    told,vectors = found['instruction']
    assert {*vectors}=={'lm.1.out', 'lm.1.mlp.down_proj.out'} and told.position.min()==12
    own = RECORDED.get_tensor('pi05.lm.1')[0][there][8:15]
    assert (vectors['lm.1.out'][:7]-own).abs().max() < 1e-5
    told,vectors = found['decision']
    assert told.denoise.nunique()==10 and {*vectors}=={'expert.0.out', 'expert.2.out'}
    told,vectors = found['adarms']
    assert (vectors['adarms.in']-RECORDED.get_tensor('pi05.adarms').flatten(0, 1)).abs().max() < 1e-5
