"Published checkpoints whose weights can't be had here: what their subject files say, on their true architecture"
import pytest, torch, yaml
import transformers as hf
from steerlens.params import resolve
from steerlens.subjects.base import tap
from steerlens.subjects.hf import as_subject, center, facts_of
from conftest import ROOT

# What the published config.json of each says beside the sizes in `expect`
CONFIGS = dict(
    gpt2=('gpt2', {}), gpt2_medium=('gpt2', {}),
    pythia_1_4b=('gpt_neox', dict(rotary_pct=.25, use_parallel_residual=True, tie_word_embeddings=False)),
    gemma_2b=('gemma', dict(head_dim=256)), gemma2_2b=('gemma2', dict(head_dim=256)),
    llama3_8b=('llama', dict(rope_theta=5e5, tie_word_embeddings=False)),
    phi2=('phi', dict(partial_rotary_factor=.4, tie_word_embeddings=False)))
SIZES = dict(width='hidden_size', layers='num_hidden_layers', heads='num_attention_heads', ffn='intermediate_size',
             kv_heads='num_key_value_heads', context='max_position_embeddings', vocabulary='vocab_size')


def model(name, **smaller):
    "The architecture of a subject file, perhaps smaller"
    kind,own = CONFIGS[name]
    sizes = {SIZES[k]: v for k,v in resolve('1_residuals', name)['expect'].items() if k in SIZES}
    if kind=='gpt2': sizes.pop('intermediate_size') # four times the width unless it says otherwise
    special = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0)
    return hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **sizes | own | special | smaller))


@pytest.mark.parametrize('name', CONFIGS)
def test_the_constants_are_those_of_the_true_size(name):
    "The whole network, without memory for its weights"
    with torch.device('meta'): net = model(name)
    expect = resolve('1_residuals', name)['expect']
    assert {k: v for k,v in facts_of(net).items() if k in expect}==expect


@pytest.mark.parametrize('name', CONFIGS)
def test_sites_and_lens_in_small(name):
    "As many layers and the same kind of heads, narrower: the sites of the file exist, the lens is the model's own"
    values = resolve('1_residuals', name)
    torch.manual_seed(0)
    few = values['expect']['heads']//values['expect']['kv_heads'] # queries that share a key
    heads = dict(num_attention_heads=few, num_key_value_heads=1) if few > 1 else dict(num_attention_heads=2)
    if few==1 and CONFIGS[name][0]!='gpt2': heads['num_key_value_heads'] = 2
    sizes = dict(hidden_size=40*heads['num_attention_heads'], intermediate_size=32, vocab_size=97,
                 max_position_embeddings=64)
    if CONFIGS[name][0].startswith('gemma'): sizes |= dict(head_dim=8)
    net = model(name, **sizes | heads)
    with torch.no_grad():
        for p in net.parameters(): p.normal_(0, .1)
    if values['load'].get('centered'): center(net)
    subject = as_subject(net)
    last = f"blocks.{values['expect']['layers']-1}.hook_resid_post"
    ids = torch.arange(20).reshape(2, 10)
    with tap(subject, [*values['sites'], last]) as acts: logits = subject.run(ids).logits
    torch.testing.assert_close(subject.logits(acts[last][0]), logits, rtol=1e-4, atol=1e-5)
    assert all(acts[s][0].shape==(2, 10, sizes['hidden_size']) for s in values['sites'])


def test_each_says_where_its_weights_belong():
    for name in CONFIGS:
        text = (ROOT/f'params/subjects/{name}.yaml').read_text()
        values = yaml.safe_load(text)['1_residuals']
        assert values['model']==f'weights/{name}' and values['model'] in text.split('1_residuals')[0]


@pytest.mark.parametrize('name', CONFIGS)
def test_phase_2_trains_where_phase_1_harvested(name):
    assert resolve('2_sae', name)['sites']==resolve('1_residuals', name)['sites']
