"Training of decoders that is killed, fed with damage or with what doesn't belong together; heads on other models"
import json, os, signal
import pytest, torch
from steerlens.core import SteerlensError, root
from steerlens.decoders import heads, supervised
from steerlens.decoders.heads import Sparse, load_head, new_head, save_head, sparse_of
from steerlens.decoders.supervised import Reader, Supervision, heard, judge, supervise, text_of
from steerlens.sae import loop
from steerlens.sae.models import for_use, new_sae
from steerlens.subjects import nano_lm
from steerlens.subjects.base import edit, tap
from steerlens.subjects.hf import as_subject
from steerlens.subjects.text import Tokens, tokenize
from conftest import killed

SITE = 'blocks.0.hook_resid_post'
HOW = Supervision(epochs=2, checkpoint=3)


def model(**kw): return as_subject(nano_lm.blank(width=32, layers=2, heads=2, **kw))


def autoencoder(seed=0, site=SITE):
    sae = new_sae(32, 64, 8, seed=seed)
    sae.cfg.metadata.hook_name = site
    return for_use(sae)


def some_text(tokens):
    tokens = Tokens(tokens)
    return text_of(tokens, dict(own=tokens), root()/nano_lm.WEIGHTS, 32, 40, 8, 8, batch=8)


def at_start(reader, text, name='table', **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_head(name, reader.sae, reader.subject, torch.randn(256, 32), **config)


def trained(tools, folder, name='path', callbacks=()):
    torch.set_num_threads(1)
    head = at_start(*tools, name)
    supervise(head, *tools, folder, HOW, callbacks)
    save_head(head, folder)


@pytest.fixture(scope='module')
def tools(tmp_path_factory):
    "A model with an autoencoder, and text"
    folder = tmp_path_factory.mktemp('tokens')
    tokenize(sorted((root()/'tests').glob('*.py'))[:12], root()/nano_lm.WEIGHTS, folder, 'tests', 'Apache-2.0')
    return Reader(model(), autoencoder()), some_text(folder)


# -- killed

MOMENTS = [(supervised._Teaching, 'update'), (supervised, 'save_file'), (supervised, 'write_json'),
           (loop, 'write_json'), (loop, '_tidy'), (loop, '_note')]


def contents(folder):
    "The bytes that count: weights, moments, measurements but the rate"
    found = {'head': (folder/'head.safetensors').read_bytes()}
    for at in loop.checkpoints(folder):
        for file in at.glob('*.safetensors'): found[at.name, file.name] = file.read_bytes()
        log = json.loads((at/'state.json').read_text())['state']['log']
        found[at.name] = [{k: v for k,v in row.items() if k!='tokens_per_s'} for row in log]
    return found


def test_ten_kills(tools, tmp_path):
    trained(tools, tmp_path/'whole')
    kills,reached,run = 0, [], 0
    for after in (3, 5, 9, 11, 14, 17, 8, 12, 19, 6, 13, 4, 16): # each goes on from what the ones before left
        folder = tmp_path/f'run{run}'
        status = killed(lambda: trained(tools, folder), MOMENTS, after)
        assert status in (0, -signal.SIGKILL)
        kills += status!=0
        found = loop.checkpoints(folder)
        reached.append(int(found[-1].name) if found else 0)
        if status==0:
            assert contents(folder)==contents(tmp_path/'whole')
            run += 1
        if kills==10: break
    assert kills==10 and len({*reached})>3, reached
    folder = tmp_path/f'run{run}'
    assert killed(lambda: trained(tools, folder), MOMENTS, 10**9)==0
    assert contents(folder)==contents(tmp_path/'whole')


def test_a_truncated_checkpoint_is_named(tools, tmp_path):
    trained(tools, tmp_path, 'table')
    at = loop.checkpoints(tmp_path)
    os.truncate(at[-1]/'training.safetensors', 1000)
    with pytest.raises(SteerlensError, match='damaged.*remove it, and training goes on from') as e:
        trained(tools, tmp_path, 'table')
    assert str(at[-1]) in str(e.value)


# -- what doesn't belong together

def refuses(tools, says, reader=None, head=None):
    own,text = tools
    with pytest.raises(SteerlensError, match=says):
        supervise(head or at_start(own, text), reader or own, text, None, HOW)


def test_others_are_refused(tools):
    own,text = tools
    refuses(tools, 'model', Reader(model(seed=1), own.sae))
    refuses(tools, 'sae', Reader(own.subject, autoencoder(seed=1)))
    refuses(tools, 'site', Reader(own.subject, autoencoder(site='blocks.1.hook_resid_post')))
    refuses(tools, 'vocabulary 2048', Reader(model(vocab=2100), own.sae))
    with pytest.raises(SteerlensError, match='no such hook'):
        Reader(own.subject, autoencoder(site='blocks.7.hook_resid_post'))(*text.train.ids(0))
    with pytest.raises(SteerlensError, match='no blocks? come after|0 blocks come after'):
        new_head('path', autoencoder(site='blocks.1.hook_resid_post'), own.subject, torch.randn(64, 32))


def test_text_of_another_vocabulary(tools):
    own,text = tools
    small = Reader(model(vocab=500), own.sae)
    refuses(tools, "at most the head's 500", small, at_start(small, text))


def test_a_model_that_changes_while_it_teaches(tools):
    own,text = tools
    subject = model()
    def change(log):
        with torch.no_grad(): next(subject.model.parameters())[0,0] += 1
    reader = Reader(subject, own.sae)
    with pytest.raises(SteerlensError, match='changed while training: model'):
        supervise(at_start(reader, text), reader, text, None, HOW, [change])


def test_numbers_that_are_not_finite(tools):
    own,text = tools
    broken = model()
    with torch.no_grad(): broken.model.transformer.ln_f.weight[0] = torch.nan
    with pytest.raises(SteerlensError, match='frozen model: logits that are NaN'):
        Reader(broken, own.sae)(*text.train.ids(0))
    with pytest.raises(SteerlensError, match='codes: NaN or infinite'):
        sparse_of(own.sae, torch.full((3, 32), torch.inf))
    head = at_start(own, text)
    with torch.no_grad(): head.W[:,7] = torch.nan
    with pytest.raises(SteerlensError, match='gradient is NaN'): supervise(head, own, text, None, HOW)
    with pytest.raises(SteerlensError, match='what the head says: .*NaN'): judge(heard(head), own, text.choice)


def test_a_folder_that_is_none(tmp_path, tools):
    own,text = tools
    with pytest.raises(SteerlensError, match='could not be read'): load_head(tmp_path, own.sae, own.subject)
    save_head(at_start(own, text), tmp_path)
    os.truncate(tmp_path/'head.safetensors', 100)
    with pytest.raises(SteerlensError, match='not what was written'): load_head(tmp_path, own.sae, own.subject)


# -- heads

def test_the_table_is_a_product(tools):
    own,text = tools
    head,read = at_start(own, text, gated=True), own(*text.train.ids(0))
    dense = torch.zeros(*read.ids.shape, 64).scatter_add(2, read.codes.ids, head.scaled(read.codes))
    torch.testing.assert_close(head.logits(read.codes), dense@head.W + head.b, rtol=1e-4, atol=1e-4)


def test_the_path_sees_no_later_codes(tools):
    own,text = tools
    head,read = at_start(own, text, 'path'), own(*text.train.ids(0))
    later = Sparse(read.codes.ids.clone(), read.codes.values.clone())
    later.ids[:,20:] = 5
    with torch.no_grad(): a,b = head.logits(read.codes), head.logits(later)
    torch.testing.assert_close(a[:,:20], b[:,:20], rtol=0, atol=1e-5)
    assert (a[:,20:]!=b[:,20:]).any()


def test_a_path_through_rotary_blocks():
    "Of a Llama with a root-mean-square norm: at its start it is the lens one block on"
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    llama,sae = as_subject(LlamaForCausalLM(config)), autoencoder()
    ids = torch.randint(100, (4, 16))
    with tap(llama, SITE) as acts: llama.run(ids)
    x = acts[SITE][0]
    rebuilt = sae.decode(sae.encode(x.flatten(0, 1))).view_as(x).detach()
    with edit(llama, SITE, lambda y, ctx: rebuilt), tap(llama, 'blocks.1.hook_resid_post') as on: llama.run(ids)
    codes = sparse_of(sae, x)
    for name,at in (('lowrank', rebuilt), ('path', on['blocks.1.hook_resid_post'][0])):
        with torch.no_grad(): says = new_head(name, sae, llama, x).logits(codes)
        torch.testing.assert_close(says, llama.logits(at), rtol=1e-3, atol=1e-3)
