"Corpora: killed in the middle, sources with all that may be wrong with one, and what users of other tools report"
import json, os, subprocess, sys, time
import numpy as np
import pytest
from steerlens.core import SteerlensError, read_json, sha256
from conftest import ROOT
from test_text import a_tokenizer

BUILD = """
import sys
from steerlens.corpora.build import build
from steerlens.corpora.recipes import read_recipe
build(read_recipe(sys.argv[1]), sys.argv[2], piece=20_000)
"""


def prose(i, n=60): return '\n'.join(f'Shelf {i} has {i*j} books about matter {j*i%89} and door {j}.' for j in range(n))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A recipe of two sources, one of them inside the other"
    here = tmp_path_factory.mktemp('corpus')
    for i in range(120):
        f = here/'text'/('inner' if i%2 else '')/f'{i}.txt'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(prose(i))
    recipe = f"""
tokenizer: {a_tokenizer(here/'tokenizer')}
sources:
  every: {{paths: [{here}/text], licence: CC0, licence_from: here}}
  inner: {{paths: [{here}/text/inner], licence: CC0, licence_from: here}}
splits:
  learn: {{tokens: 80000, sources: {{every: 2, inner: 1}}}}
  test: {{tokens: 9000, sources: {{inner: 1}}, evaluation: true}}
"""
    (here/'recipe.yaml').write_text(recipe)
    return here


@pytest.mark.slow # the notebook stops a build after its pieces, by an exception
def test_killed_it_goes_on_to_the_same_bytes(made):
    from steerlens.corpora.build import build
    from steerlens.corpora.recipes import read_recipe
    whole,killed = made/'whole', made/'killed'
    account = build(read_recipe(str(made/'recipe.yaml')), whole, piece=20_000)
    pieces = lambda: len(read_json(killed/'catalog.json')['pieces']) if (killed/'catalog.json').exists() else 0
    command = [sys.executable, '-c', BUILD, str(made/'recipe.yaml'), str(killed)]
    p = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while p.poll() is None and pieces() < 3: time.sleep(.002)
    p.kill()
    p.wait()
    assert p.returncode==-9 and 3 <= pieces() < len(read_json(whole/'catalog.json')['pieces'])
    build(read_recipe(str(made/'recipe.yaml')), killed, piece=20_000)
    assert sha256(killed)==sha256(whole)
    # one document in two sources is kept once
    names = [n for s in account['splits'] for n in texts(whole/'text'/s)]
    assert len(names)==len({*names}) and 'nearly the same as one in test' in account['sources']['every']['dropped']


def texts(folder):
    from steerlens.subjects.text import documents
    return [t for *_,t in documents(folder)]


def test_a_loop_of_links_ends(tmp_path):
    from steerlens.corpora.recipes import Source, listed
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'loop').symlink_to(tmp_path)
    (tmp_path/'a'/'x.txt').write_text('a drawer')
    os.mkfifo(tmp_path/'pipe')
    found = listed('s', Source(paths=[str(tmp_path)], licence='CC0', licence_from='here'))
    assert [n for n,*_ in found.files]==['a/x.txt'] and found.left['a link, or no file']==1


def test_a_torn_line_of_a_table_is_named(tmp_path):
    from steerlens.corpora.recipes import Source, read
    (tmp_path/'t.jsonl').write_text(json.dumps(dict(text='one'))+'\n{"text": "tw')
    with pytest.raises(SteerlensError, match='t.jsonl: line 2'):
        list(read('t.jsonl', tmp_path/'t.jsonl', Source(), 1000))


def sift(*documents):
    from steerlens.corpora.near import Index, signatures
    return Index().sift(signatures(documents))[0].tolist()


def test_what_users_of_other_tools_report():
    "Documents without words, short ones, scripts without spaces, long templates, and copies of copies"
    from steerlens.corpora.near import Index, jaccard, signatures
    with pytest.raises(SteerlensError, match='without words'): sift('', ' \n')
    assert sift('red', 'green', 'red')==[-1, -1, 0] # shorter than a shingle
    chinese = ''.join(chr(0x4e00+i*7%3000) for i in range(200))
    assert sift(chinese, chinese[:-4], chinese[::-1])==[-1, 0, -1]
    assert sift('Größe '*3+prose(1), 'GRÖSSE '*3+prose(1))==[-1, 0]
    chain = [' '.join(map(str, range(i, i+200))) for i in (0, 15, 30)]
    assert jaccard(chain[0], chain[1])>.8>jaccard(chain[0], chain[2]) and sift(*chain)==[-1, 0, -1]
    copies = Index(1.).sift(signatures([prose(1), prose(1, 40), prose(1)]))[0]
    assert copies.tolist()==[-1, -1, 0]
    calls = [f'call number {i} of: {prose(7)}' for i in range(50)]
    assert sift(*calls)==[-1]+[0]*49 # of one template one document is kept, and each of the others says which
    assert sift('apple pear plum cherry fig', 'apple pear plum')==[-1, -1] # of .4 by words, none by shingles
    again = np.random.default_rng(0).permutation(40)
    docs = [prose(i%20) for i in range(40)]
    assert sum(l<0 for l in sift(*docs))==sum(l<0 for l in sift(*[docs[i] for i in again]))==20
    assert (signatures([prose(3)])==signatures([prose(3).replace('\n', '\r\n')])).all() # another system's line ends
    many = Index()
    assert (many.sift(signatures([prose(i) for i in range(3000)]))[0]<0).mean() > .9 # grown thrice


def test_a_source_too_small_is_said_before_work(made, tmp_path):
    from steerlens.corpora.build import build
    from steerlens.corpora.recipes import read_recipe
    large = read_recipe(str(made/'recipe.yaml'), scale=90)
    with pytest.raises(SteerlensError, match='lower scale'): build(large, tmp_path/'c')
    assert not (tmp_path/'c'/'text').exists()
