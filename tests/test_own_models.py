"A stranger's project: language models, modules, sweeps and scripts of their own, run from the command line"
import json, shutil, sys
from pathlib import Path
import pytest
import yaml
from steerlens.core import read_json
from conftest import ROOT, sh
from test_text import a_tokenizer

SIZES = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A folder with our phases and parameters, and tiny models and text of its own"
    import torch, transformers as hf
    folder = tmp_path_factory.mktemp('mine')
    for name in ('sae_notebooks', 'params', 'nbs', 'steerlens', 'profiles'): shutil.copytree(ROOT/name, folder/name)
    for name in ('settings.ini', 'Snakefile'): shutil.copy(ROOT/name, folder)
    torch.manual_seed(0)
    for kind in ('gpt2', 'llama'):
        model = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **SIZES))
        model.save_pretrained(folder/'weights'/kind)
        a_tokenizer(folder/'weights'/kind)
    text = folder/'text'
    text.mkdir()
    sources = sorted(Path(json.__file__).parents[1].glob('*.py'), key=lambda f: f.stat().st_size)
    for f in sources[30:50]: shutil.copy(f, text)
    for kind in ('gpt2', 'llama'):
        own = dict(module='lm', model=f'weights/{kind}', sites=['blocks.1.hook_resid_post'], text=['text'],
                   source='Python', licence='PSF-2.0', context=32, windows=60, expect=dict(width=32, layers=2))
        sae = dict(sites=['blocks.1.hook_resid_post'], d_sae=64, k=4, steps=20, batch=128, success_n=0, windows=8,
                   bars=dict(kl=.5, l0=[2, 6]))
        explore = dict(site='blocks.1.hook_resid_post', n=3, others=6, inputs=4, placebos=5, alike=1)
        codes = dict(sites=['blocks.1.hook_resid_post'], rounds=3, queries=10)
        block = {'1_residuals': own, '2_sae': sae, '5_codes': codes, '7_explore': explore}
        (folder/'params'/'subjects'/f'my_{kind}.yaml').write_text(yaml.safe_dump(block))
    return folder


def steerlens(project, *args): return sh('steerlens', *args, cwd=project, STEERLENS_ROOT=str(project))


def test_both_phases_on_a_model_of_ones_own(project):
    for phase in '12':
        said = steerlens(project, 'run', phase, 'my_gpt2')
        assert said.rc==0, said.out+said.err
    metrics = read_json(project/'reports'/'2_sae'/'my_gpt2'/'metrics.json')
    swaps = {row['swap'] for row in metrics['spliced']['blocks.1.hook_resid_post']}
    assert swaps=={'clean', 'spliced', 'mean', 'zero'}
    assert (project/'sae'/'my_gpt2'/'blocks.1.hook_resid_post'/'qa.json').exists()


@pytest.mark.slow
def test_figures_of_a_model_of_ones_own(project):
    "After both phases: the network as transformers built it, and training; no effects, since it wasn't steered"
    for to in ('figures', 'again'):
        said = steerlens(project, 'figures', 'my_gpt2', '--to', to)
        assert said.rc==0 and 'no effects of my_gpt2' in said.out, said.out+said.err
    for kind in ('network', 'training'):
        pdf = (project/f'figures/my_gpt2_{kind}.pdf').read_bytes()
        assert b'/FontFile2' in pdf and b'/Type3' not in pdf
        for f in (f'my_gpt2_{kind}.pdf', f'my_gpt2_{kind}.svg'):
            assert (project/'figures'/f).read_bytes()==(project/'again'/f).read_bytes()


@pytest.mark.slow
def test_codes_and_explore_on_a_model_of_ones_own(project):
    for phase in '1257':
        said = steerlens(project, 'run', phase, 'my_gpt2')
        assert said.rc==0, said.out+said.err
    shuffled = read_json(project/'reports'/'7_explore'/'my_gpt2'/'metrics.json')['audit']['shuffled']
    assert shuffled['n']==64 and shuffled['rate']<.1



REFUSED = {
    'width: 32; expected 768': ['1', 'gpt2', 'text=[text]', 'source=x', 'licence=y'], # a folder that calls itself gpt2
    "module 'gone': not found": ['1', 'my_gpt2', 'module=gone'],
    "no parameter 'window'; did you mean windows?": ['1', 'my_gpt2', 'window=3'],
    'text: none given': ['1', 'my_gpt2', 'text=[]'],
    'context=65: out of range': ['1', 'my_gpt2', 'context=65'],
    'could not be read': ['2', 'pi05'],
}


@pytest.mark.parametrize('says', REFUSED)
def test_refused_in_one_line(project, says):
    said = steerlens(project, 'run', *REFUSED[says])
    assert said.rc==1 and says in said.err and said.err.count('\n')==1, said.out+said.err


SWEEP = """
subject: my_gpt2
bars: {kl: 0.5}
sweep:
  k: [2]
  config: [{aux_loss_coefficient: 0.5}, {}]
  wandb: [""]
"""


@pytest.mark.slow # both phases once more, and phase 2 twice
def test_a_sweep_of_dicts_and_blanks(project):
    "Both phases on a gpt2, the second twice: values reach it in files; variants are told by their hash and listed"
    (project/'my sweep.yaml').write_text(SWEEP)
    command = ['snakemake', '--nolock', '--profile', 'profiles/local', '--config', 'sweep=my sweep.yaml', '--', 'sweep']
    said = sh(*command, cwd=project, STEERLENS_ROOT=str(project))
    assert said.rc==0, said.out+said.err
    sweep = read_json(project/'sweeps'/'my_gpt2'/'sweep.json')
    assert sweep['swept']==['k', 'config', 'wandb'] and len(sweep['variants'])==2
    import pandas as pd
    table = pd.read_parquet(project/'sweeps'/'my_gpt2'/'compare.parquet')
    assert len(table)==2 and table.config.nunique()==2


def test_hostile_values_stay_values(project):
    "A semicolon in a sweep's value is refused as a value, and runs nothing"
    (project/'hostile.yaml').write_text(SWEEP.replace('[2]', '["2; touch owned", 4]'))
    command = ['snakemake', '-n', '--nolock', '--profile', 'profiles/local', '--config', 'sweep=hostile.yaml']
    said = sh(*command, '--', 'sweep', cwd=project, STEERLENS_ROOT=str(project))
    assert said.rc!=0 and "k = '2; touch owned'; expected float" in said.out+said.err
    assert not (project/'owned').exists()


WORKERS = """
from steerlens.steer.trials import Lab
from steerlens.subjects.nano_vla import trials_of
from steerlens.subjects.settle import settle
with Lab(settle('nano_vla'), workers=2) as lab: lab.run(trials_of('drawer_push', 2, 0))
"""


def test_workers_without_a_main_guard(tmp_path):
    (tmp_path/'script.py').write_text(WORKERS)
    said = sh(sys.executable, tmp_path/'script.py')
    assert said.rc!=0 and "if __name__ == '__main__'" in said.err
    assert 'a worker process died' in said.err.splitlines()[-1]
