"The set model: the same bytes from fresh processes, a vocabulary that isn't its own, torn weights, what is shipped"
import json, shutil, sys
import pytest
from conftest import ROOT, sh
from steerlens.core import SteerlensError, read_manifest, sha256
from steerlens.subjects import set_data, set_model

WEIGHTS = ROOT/set_data.WEIGHTS
SHORT = """
import sys
from steerlens.subjects import set_data, set_net
sets = set_data.shipped()
few = set_data.Sets(sets.only('train').table[:400], sets.vocabulary)
set_net.save(set_net.train(set_net.new_net(few.vocabulary), few, epochs=1), few, sys.argv[1])
"""


@pytest.fixture
def copy(tmp_path): return shutil.copytree(WEIGHTS, tmp_path/'set_model')


def refused(folder, says):
    with pytest.raises(SteerlensError, match=says) as e: set_model.subject(folder)
    assert '\n' not in str(e.value)


def test_fresh_processes_train_to_the_same_bytes(tmp_path):
    for name,threads in dict(a='1', b='2').items():
        said = sh(sys.executable, '-c', SHORT, tmp_path/name, OMP_NUM_THREADS=threads)
        assert said.rc==0, said.err
    assert sha256(tmp_path/'a')==sha256(tmp_path/'b')


def test_another_vocabulary_is_refused(copy):
    found = json.loads((copy/'vocab.json').read_text())
    found['tokens'][0],found['tokens'][1] = found['tokens'][1], found['tokens'][0]
    (copy/'vocab.json').write_text(json.dumps(found))
    refused(copy, r'vocab\.json: not the vocabulary of these weights')


@pytest.mark.parametrize('left', [0, 7, 1000, 100_000])
def test_truncated_weights_are_refused(copy, left):
    file = copy/'model.safetensors'
    file.write_bytes(file.read_bytes()[:left])
    refused(copy, r'model\.safetensors: not the weights of set_model')


@pytest.mark.parametrize('file,says', [('model.safetensors', 'no weights'), ('vocab.json', 'could not be read')])
def test_missing_files_are_refused(copy, file, says):
    (copy/file).unlink()
    refused(copy, says)


def test_the_shipped_weights_are_the_measured_ones():
    m = read_manifest(WEIGHTS, 'set_model-weights')
    assert m['sha256']==sha256(WEIGHTS/'model.safetensors')
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir())<600_000
    less = {(r['what'], r['who']): r for r in m['less_than_logistic']}
    assert less['loss', 'set_model']['hi']<0<less['ap', 'set_model']['lo']


def test_no_held_out_set_has_a_near_copy_to_learn_from():
    sets = set_data.shipped()
    train,test = (sets.only(s).X.float() for s in ('train', 'test'))
    both = test@train.T
    assert (both/(test.sum(1)[:,None]+train.sum(1)-both)).max()<set_data.ALIKE
