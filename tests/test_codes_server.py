"The code server as a user starts it: its API under anything that fits its schema, its guards, its memory"
import json, os, random, subprocess, time
import httpx, numpy as np, pandas as pd, pyarrow as pa, pytest, scipy.sparse as sp
from conftest import BIN

pytest.importorskip('fastapi', reason='the server is an extra')
N,F = 300_000, 64


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A store with statistics: feature 0 fires on every row, feature 1 never, the others more and more rarely"
    from steerlens.codes.statistics import statistics
    from steerlens.codes.store import write_codes
    g = np.random.default_rng(0)
    rows = [np.arange(N), np.empty(0, int), *(np.sort(g.choice(N, 3000//j, replace=False)) for j in range(2, F))]
    where = np.concatenate(rows), np.repeat(np.arange(F), [*map(len, rows)])
    codes = sp.csr_matrix((g.random(len(where[0])).astype('f4')+.01, where), (N, F))
    about = pd.DataFrame(dict(episode=np.arange(N)//100, step=np.arange(N)%100, context=np.repeat(['push', None], N//2),
                              tokens=[['a', 'b'][:i%3] for i in range(N)], at=pd.Timestamp('2025-01-01'),
                              raw=b'\xff', reward=np.nan, kind=pd.Categorical(np.arange(N)%2)))
    base = tmp_path_factory.mktemp('codes')
    statistics(write_codes(base/'store', codes, about, F))
    return base


def started(*command, cwd, **env):
    "A server, and its address"
    command = [str(c) for c in command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, env=os.environ|env)
    return process, process.stdout.readline().split()[1]


@pytest.fixture(scope='module')
def server(folder):
    (folder/'vocab.json').write_text(json.dumps(dict(a=0, b=1)))
    process,url = started(BIN/'steerlens', 'serve', 'store', '--port', '0', '--vocab', 'vocab.json', cwd=folder)
    with process:
        try: yield process, url
        finally: process.terminate()


@pytest.fixture
def url(server): return server[1]


@pytest.fixture
def page(url):
    with httpx.Client(base_url=url, timeout=120, headers={'accept-encoding': 'identity'}) as client: yield client


def table(answer): return pa.ipc.open_stream(answer.content).read_all()


def test_no_request_of_any_shape_breaks_it(url):
    "Property-based: whatever fits the server's own schema is answered, as the schema says, and not with a 5xx"
    schemathesis = pytest.importorskip('schemathesis')
    from hypothesis import HealthCheck, given, settings, strategies as st
    schema = schemathesis.openapi.from_url(f'{url}/openapi.json')
    calm = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    answered = {}

    def ask(operation):
        @given(case=operation.as_strategy(), real=st.none()|st.integers(0, F))
        @settings(calm, max_examples=40)
        def asked(case, real):
            ids = {'feature_id', 'row_id'} & set(case.path_parameters or {})
            if real is not None: case.path_parameters |= dict.fromkeys(ids, real)
            answer = case.call_and_validate(timeout=60)
            answered.setdefault(operation.path, set()).add(answer.status_code)
            assert answer.status_code < 500, case.as_curl_command()
        asked()

    for operation in schema.get_all_operations(): ask(operation.ok())
    fine = [path for path,statuses in answered.items() if 200 in statuses]
    assert len(fine)==len(answered)==10, f'only {fine} were ever answered: this test asks for nothing'


def test_a_thousand_wrong_ids_are_a_thousand_sentences(page):
    g = random.Random(0)
    odd = ['', ' ', '1.5', 'nan', '٣', '1e3', '0x1', '-0', '+1', 'True', '%00', '%ff', '..', "1'--", '1'*5000]
    kinds = [lambda: g.randrange(F, 2**g.randrange(7, 99)), lambda: -g.randrange(1, 2**200), lambda: g.choice(odd)]
    paths = ['/activations/{}', '/activations/{}/arrow', '/rows/{}', '/features/{}/stats', '/features/{}/top',
             '/features/{}/coactive']
    for i in (str(g.choice(kinds)()) for _ in range(1000)):
        answer = page.get(g.choice(paths).format(i))
        if answer.status_code==200: assert i in ('-0', '+1', '٣') or '/rows/' in str(answer.url), i
        else: assert answer.status_code in (404, 422) and '\n' not in answer.json()['detail'], (i, answer.text)


@pytest.mark.parametrize('query', [
    'limit=0', 'limit=-1', 'limit=x', 'limit=1.5', 'sample_frac=nan', 'sample_frac=inf', 'sample_frac=0',
    'sample_frac=-1', 'sample_frac=1.0001', 'seed=-1', f'seed={2**70}', 'include_tokens=perhaps', 'limt=1'])
def test_what_can_not_be_asked_is_refused(page, query):
    for path in ('/activations/2', '/activations/2/arrow'):
        answer = page.get(f'{path}?{query}')
        assert answer.status_code==422 and answer.json()['detail'].startswith(query.split('=')[0]), answer.text


def test_absurd_limits(page):
    "Arrow gives all there is; JSON has a bound"
    for limit in (2**63, 10**40): assert len(table(page.get(f'/activations/2/arrow?limit={limit}')))==1500
    assert page.get('/activations/2?limit=1000000').json()['n_rows']==1500
    for query in ('/activations/2?limit=1000001', '/features/2/top?k=10001'):
        assert 'less than or equal to 1000' in page.get(query).json()['detail']


def test_json_has_a_limit_and_says_so(page):
    shown = page.get('/activations/0').json()
    assert (shown['n_rows'], len(shown['data']), shown['n_total'])==(10_000, 10_000, N)


@pytest.mark.parametrize('asked', ['identity', 'gzip', 'zstd', 'gzip;q=0, zstd', 'br', '', '*', 'zstd;q=x'])
def test_a_large_feature_comes_in_batches_and_whole(url, asked):
    "More rows than one batch holds, packed or not"
    import io
    raw = httpx.Client(base_url=url, timeout=60).stream('GET', '/activations/0/arrow?include_abilities=false',
                                                        headers={'accept-encoding': asked})
    with raw as answer: body = b''.join(answer.iter_raw())
    coding = answer.headers.get('content-encoding')
    assert coding==('zstd' if 'zstd' in asked else None)
    file = pa.CompressedInputStream(pa.BufferReader(body), 'zstd') if coding else io.BytesIO(body)
    read = pa.ipc.open_stream(file).read_all()
    assert (read['row_id'].to_numpy()==np.arange(N)).all() and read['activation'].num_chunks > 1
    assert answer.headers['x-num-rows']==answer.headers['x-total-rows']==str(N)


def test_rows_carry_the_guides_columns_and_ours(page):
    some = table(page.get('/activations/0/arrow?limit=4&include_tokens=true'))
    assert some.column_names==['row_id', 'activation', 'episode', 'step', 'context', 'tokens', 'at', 'raw', 'reward',
                               'kind', 'ability_input_tokens', 'weapon_id']
    assert some['kind'].to_pylist()==[0, 1, 0, 1]
    line = page.get('/activations/0?limit=1&include_tokens=true').json()['data'][0]
    assert (line['raw'], line['reward'], line['at'])==('_w==', None, '2025-01-01T00:00:00')
    never,always = (table(page.get(f'/activations/{j}/arrow?include_tokens=true')).schema for j in (1, 0))
    assert never==always, 'a column has one type, whichever feature is asked for'
    assert some['ability_input_tokens'].to_pylist()==[[], [0], [0, 1], []]
    assert page.get('/activations/0?limit=4').json()['data'][2]['ability_input_tokens']==[0, 1]
    everything = table(page.get('/activations/0/arrow?include_tokens=true&include_abilities=false'))
    assert len(everything)==N and everything['context'].null_count==N//2


def test_names_that_are_not_its_own_are_refused(page):
    for host in ('evil.example', 'localhost.evil.example', '[', '127.0.0.1.evil.example', ''):
        assert page.get('/health', headers=dict(host=host)).status_code in (400, 403)
    for host in ('localhost', '127.0.0.1:99', '[::1]'):
        assert page.get('/health', headers=dict(host=host)).status_code==200
    answer = page.get('/health', headers=dict(origin='http://evil.example'))
    assert 'access-control-allow-origin' not in answer.headers


def test_it_only_reads(page):
    for method in ('POST', 'PUT', 'PATCH', 'DELETE'): assert page.request(method, '/activations/2').status_code==405


def test_others_need_the_token(folder):
    command = str(BIN/'steerlens'), 'serve', 'store', '--port', '0', '--host', '0.0.0.0'
    refused = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert refused.returncode==1 and 'others could ask; expected --token' in refused.stderr
    process,url = started(*command, cwd=folder, ACTIVATION_TOKEN='s3cret')
    with process:
        try:
            url = url.replace('0.0.0.0', '127.0.0.1')
            def status(**headers): return httpx.get(f'{url}/health', headers=headers).status_code
            assert status()==status(authorization='Bearer wrong')==status(authorization='s3cret')==401
            assert status(authorization='Bearer s3cret', host='by-another-name')==200
        finally: process.terminate()


def test_the_guides_own_command(folder):
    "uvicorn, a module's name, and the environment; what isn't there is one line"
    command = str(BIN/'uvicorn'), 'steerlens.codes.server:app', '--port', '0'
    def run(**env): return subprocess.Popen(command, cwd=folder, env=os.environ|env, stderr=subprocess.PIPE, text=True)
    with run(ACTIVATION_DATA_DIR=str(folder/'store')) as process:
        try:
            for line in process.stderr:
                if 'running on' in line: break
            health = httpx.get(f"{line.split('running on ')[1].split()[0]}/health").json()
            assert {k: health[k] for k in ('status', 'model_type', 'n_features')}==dict(
                status='healthy', model_type='full', n_features=F)
        finally: process.terminate()
    with run(ACTIVATION_DATA_DIR='/nowhere') as process:
        assert 'data_dir=/nowhere: no such folder' in process.stderr.read().splitlines()[-1]


def test_a_store_is_served_while_it_is_built(tmp_path):
    from steerlens.codes.parts import Entries, Layout, write_part
    from steerlens.codes.store import finish, new_catalog, read_catalog
    from steerlens.core import write_json
    folder,layout = tmp_path/'store', Layout(4)
    entries = [Entries(np.ones(5, int), np.full(5, 2), np.ones(5))]
    def part(i): write_part(folder/f'parts/{i:04d}', 5*i, entries, None, layout)
    write_json(folder/'catalog.json', new_catalog(layout, 10, 5, site='', streams=[], sae={}, acts={}))
    part(0)
    process,url = started(BIN/'steerlens', 'serve', 'store', '--port', '0', cwd=tmp_path)
    with process:
        try:
            def ask(path): return httpx.get(f'{url}{path}').json()
            def seen(): return ask('/activations/2')['n_total'], ask('/health')['finished']
            assert seen()==(5, False)
            part(1)
            time.sleep(2.1)
            assert seen()==(10, False)
            finish(folder, read_catalog(folder))
            time.sleep(2.1)
            assert seen()==(10, True)
        finally: process.terminate()


def test_a_slow_layout_is_kept_in_memory_and_says_so(folder):
    from steerlens.codes.exports import export_transposed
    from steerlens.codes.store import Codes
    export_transposed(Codes(folder/'store'), folder/'transposed')
    process,url = started(BIN/'steerlens', 'serve', 'transposed', '--port', '0', cwd=folder)
    with process:
        try:
            first,again = (httpx.get(f'{url}/activations/2/arrow') for _ in range(2))
            assert (first.headers['x-cache-hit'], again.headers['x-cache-hit'])==('false', 'true')
            assert table(first)==table(again) and len(table(first))==1500
        finally: process.terminate()


def test_memory_stays_flat(server, page):
    def rss(): return int(next(l for l in open(f'/proc/{server[0].pid}/status') if l.startswith('RssAnon')).split()[1])
    def ask(n):
        for j in range(n): page.get(f'/activations/{2+j%9}/arrow?include_abilities=false')
        for _ in range(n//50): page.get('/activations/0/arrow?include_abilities=false')
    ask(300)
    before = rss()
    ask(1500)
    assert rss() < before+8_000
