"""Near-duplicates: documents a second and memory beside datasketch, or beside plain Python where that isn't there

    python benchmarks/corpus.py [--quick] [--json FILE] [--only signatures,sift]

datasketch is no dependency: `pip install datasketch` beside the rest brings it into the table. It is given the same
shingles, as many permutations and the same bands, and its candidates are confirmed by their signatures as ours are.
"""
import os
os.environ |= dict(OMP_NUM_THREADS='1')
import hashlib, random, sys, sysconfig
from pathlib import Path
import numpy as np
from steerlens.corpora.near import BANDS, ROWS, Index, jaccard, shingles, signatures
from steerlens.core import rng
from table import Peak, args, race, run
try: import datasketch
except ImportError: datasketch = None

ARGS = args(__doc__)
N = 300 if ARGS.quick else 5000
PEER = f'datasketch {getattr(datasketch, "__version__", "")}'.strip() if datasketch else 'plain Python'
WIDTH = BANDS*ROWS


def corpus():
    "Python files of this machine, cut at 8,000 characters, a fifth of them again with one word in a hundred changed"
    files = Path(sysconfig.get_paths()['purelib']).rglob('*.py')
    files = sorted(files, key=lambda f: hashlib.sha256(str(f).encode()).digest())
    texts = []
    for f in files:
        text = f.read_text(errors='replace')[:8000]
        if len(text) >= 500: texts.append(text)
        if len(texts)==N: break
    g = random.Random(0)
    def edited(t): return ' '.join('x'+str(g.random()) if g.random()<.01 else w for w in t.split(' '))
    return texts + [edited(t) for t in texts[::5]]


TEXTS = corpus()


def plain_signature(found, a, b):
    "MinHash by numpy, a document at a time"
    top = (np.fromiter(found, np.uint64, len(found)) >> np.uint64(32)).astype(np.uint32)
    return ((top[:,None]^b)*a).min(0) if len(top) else np.full(WIDTH, 2**32-1, np.uint32)


def their_signatures():
    "Of all documents, from the same shingles"
    if datasketch:
        made = (datasketch.MinHash(WIDTH, hashfunc=lambda h: h & 0xffffffff) for _ in TEXTS)
        out = []
        for m,t in zip(made, TEXTS):
            m.update_batch(shingles(t))
            out.append(m)
        return out
    a,b = rng('peer').integers(0, 2**32, (2, WIDTH), dtype=np.uint32)
    return [plain_signature(shingles(t), a|1, b) for t in TEXTS]


def their_sift(made):
    "Keep documents that are like none that is kept; how many"
    if datasketch:
        index,kept = datasketch.MinHashLSH(num_perm=WIDTH, params=(BANDS, ROWS)), {}
        for i,m in enumerate(made):
            if any(kept[k].jaccard(m)>=.8 for k in index.query(m)): continue
            index.insert(i, m)
            kept[i] = m
        return len(kept)
    tables,kept = [{} for _ in range(BANDS)], []
    for s in made:
        keys = [s[b*ROWS:(b+1)*ROWS].tobytes() for b in range(BANDS)]
        near = {i for t,k in zip(tables, keys) for i in t.get(k, ())}
        if any((kept[i]==s).mean()>=.8 for i in near): continue
        for t,k in zip(tables, keys): t.setdefault(k, []).append(len(kept))
        kept.append(s)
    return len(kept)


def signature_rows(folder):
    "Text to signatures"
    signatures(TEXTS[:2])
    ours,peer,mb = race(len(TEXTS), lambda: signatures(TEXTS), their_signatures, repeat=1 if ARGS.quick else 3)
    return [dict(name='text to signatures', ours=ours, peer=peer, peer_name=PEER, unit='documents/s', memory_mb=mb)]


def sift_rows(folder):
    "Signatures to the documents that stay, and the memory of it"
    own,their = signatures(TEXTS), their_signatures()
    Index().sift(own[:2])
    ours,peer,mb = race(len(TEXTS), lambda: Index().sift(own), lambda: their_sift(their), repeat=1 if ARGS.quick else 3)
    with Peak() as peak: their_sift(their)
    like = Index().sift(own)[0]
    kept = [t for t,l in zip(TEXTS, like) if l<0]
    edited = range(N, len(TEXTS))
    near = [i for i in edited if jaccard(TEXTS[i], TEXTS[5*(i-N)])>=.8]
    print(f'kept {len(kept)} of {len(TEXTS)}, theirs {their_sift(their)};',
          f'of {len(near)} edited ones of .8 and more found {sum(like[i]>=0 for i in near)}', file=sys.stderr)
    beside = dict(peer_name=PEER, memory_mb=mb)
    return [dict(name='signatures to what stays', ours=ours, peer=peer, unit='documents/s', **beside),
            dict(name='memory of the index', ours=mb, peer=max(peak.mb, .1), unit='MB', **beside)]


ABOUT = f"""
{N:,} Python files of this machine, cut at 8,000 characters, and a fifth of them again with one word in a hundred
changed, on one core. The peer gets the same shingles (their time is in its first line), as many permutations and the
same bands, and confirms candidates by signatures.
"""

if __name__=='__main__':
    run(dict(signatures=signature_rows, sift=sift_rows), ARGS, title='Near-duplicates', about=' '.join(ABOUT.split()))
