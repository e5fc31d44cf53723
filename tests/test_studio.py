"The studio's server, as a user starts it: its API, its guards, and many users at once"
import io, json, os, subprocess, threading, time
from concurrent.futures import ThreadPoolExecutor
import httpx, pytest, torch
from conftest import BIN

fastapi = pytest.importorskip('fastapi', reason='the studio is an extra')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Where `load_sae` may read: artifacts of the walker, and a link that leads out"
    from steerlens.app.artifacts import train_sae
    from steerlens.app.policies import embedded
    from steerlens.app.worlds import kind_of
    from steerlens.sae.train import Training
    base = tmp_path_factory.mktemp('artifacts')
    short = Training(steps=300, lr=2e-3, measure=300, checkpoint=300)
    train_sae(embedded(), kind_of('walker'), 5, base/'walker', 128, walks=5, training=short, batch=256)
    (base/'out').symlink_to('/etc')
    return base


@pytest.fixture(scope='module')
def server(root):
    "Its address; it runs as `steerlens studio`"
    command = [str(BIN/'steerlens'), 'studio', '--port', '0', '--artifacts', str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try: yield process.stdout.readline().split()[1]
        finally: process.terminate()


@pytest.fixture
def page(server):
    with httpx.Client(base_url=server, timeout=120) as client: yield client


@pytest.fixture
def walker(page): return page.post('/embedded').json()['model_id']


def file_of(x):
    out = io.BytesIO()
    torch.save(x, out)
    return out.getvalue()


def mlp(*widths):
    return {f'{i}.weight': torch.randn(n, m)/m**.5 for i,(m,n) in enumerate(zip(widths, widths[1:]))}


def upload(page, data, name='policy.pt', **form):
    return page.post('/upload', files=dict(file=(name, data)), data=form)


def finished(page, answer):
    "The run that a request began, when it is over"
    assert answer.status_code==200, answer.text
    with page.stream('GET', f"/run/{answer.json()['run_id']}/events") as events:
        for line in events.iter_lines(): last = line or last
    return json.loads(last.removeprefix('data: '))


def test_the_guides_own_walk(page, root):
    "Upload, load, interpret, perturb, run: with the guide's requests, and its answers' keys"
    from steerlens.app.policies import embedded
    m = upload(page, embedded().saved('pt')).json()
    assert [layer['size'] for layer in m['summary']['layers']]==[32, 64, 64, 64, 4]
    at = f"/model/{m['model_id']}"
    sae = page.post(f'{at}/load_sae', json=dict(artifacts_dir='walker', tap_index=5)).json()
    assert {k: sae[k] for k in ('ok','d_in','d_latent','k','tap_index','has_cached_data','loaded_from')}==dict(
        ok=True, d_in=64, d_latent=128, k=16, tap_index=5, has_cached_data=True, loaded_from='walker')
    found = page.post(f'{at}/interpret_features', json=dict(target_dim=0, top_k=10)).json()
    assert found['target_dim']==0 and len(found['features'])==10 and found['r2']>.8
    assert found['features']==sorted(found['features'], key=lambda f: -f['abs_weight'])
    first = found['features'][0]['feature_idx']
    said = page.post(f'{at}/sae_perturb', json=dict(feature_idx=first, alpha=2.)).json()
    assert said['ok'] and said['feature_idx']==first and said['alpha']==2 and said['decoder_norm']>0
    run = finished(page, page.post(f'{at}/save_and_run', json=dict(n_seeds=2, steps=60)))
    assert run['state']=='done', run['message']
    assert run['result']['applied']['sae']['feature_idx']==first
    assert run['result']['edited_steps']['baseline']==0 < run['result']['edited_steps']['plus']
    for arm in (*run['result']['videos'], 'side_by_side'):
        assert page.get(f"/run/{run['run_id']}/video/{arm}.mp4").content[4:8]==b'ftyp'


def test_an_accepted_perturbation_changes_the_next_run_and_alpha_0_ends_it(page, walker):
    def speed(**body):
        page.post(f'/model/{walker}/sae_perturb', json=dict(feature_idx=3) | body)
        run = finished(page, page.post(f'/model/{walker}/save_and_run', json=dict(n_seeds=2, steps=60, video=False)))
        return {r['arm']: r['mean'] for r in run['result']['table'] if r['measure']=='return'}
    pushed,still = speed(alpha=1.), speed(alpha=0.)
    assert set(still)=={'baseline'} and still['baseline']==pushed['baseline']!=pushed['plus']
    gated = speed(alpha=1., steps=[100_000, 100_001])
    assert gated['plus']==gated['baseline'], 'the gate never opened'


def test_edited_weights_are_run_and_saved_and_taken_back(page, walker):
    at = f'/model/{walker}'
    before = page.post(f'{at}/value', json=dict(key='out.weight', index=[0, 0])).json()['value']
    assert page.post(f'{at}/edit_at', json=dict(key='out.weight', index=[0, 0], op='set', value=3.)).json()['after']==3
    assert page.post(f'{at}/perturb', json=dict(key='out.bias', op='add_noise', value=.1)).json()['changed']==4
    run = finished(page, page.post(f'{at}/save_and_run', json=dict(n_seeds=2, steps=60, video=False)))
    assert {r['arm'] for r in run['result']['table']}=={'baseline', 'edited'}
    assert [e['op'] for e in run['result']['applied']['weights']]==['set', 'add_noise']
    saved = page.get(f'{at}/save?format=safetensors')
    assert 'attachment' in saved.headers['content-disposition']
    again = upload(page, saved.content, 'p.safetensors').json()
    assert again['summary']['activation']=='relu' and again['worlds'][0]=='walker'
    assert page.post(f"/model/{again['model_id']}/value", json=dict(key='out.weight', index=[0, 0])).json()['value']==3
    page.post(f'{at}/reset')
    assert page.post(f'{at}/value', json=dict(key='out.weight', index=[0, 0])).json()['value']==before


@pytest.mark.parametrize('folder', ['..', '../..', '/etc', 'out', 'walker/../../x', '.' * 5000, '\0', ''])
def test_no_folder_outside_the_root(page, walker, folder):
    answer = page.post(f'/model/{walker}/load_sae', json=dict(artifacts_dir=folder))
    assert answer.status_code in (400, 404) and '\n' not in answer.json()['detail']


def test_another_tap_is_refused_by_the_name_of_the_one_that_fits(page, walker):
    answer = page.post(f'/model/{walker}/load_sae', json=dict(artifacts_dir='walker', tap_index=3))
    assert answer.status_code==400 and 'tap 5 fits' in answer.json()['detail']
    assert page.get(f'/model/{walker}').json()['sae']['loaded_from']!='walker', 'what was loaded stays'


def test_rows_that_do_not_belong_together_are_not_cached_data(page, walker, root):
    obs,acts = (torch.load(root/'walker'/f, weights_only=True) for f in ('cached_obs.pt', 'tapped_activations.pt'))
    sae = (root/'walker'/'walker_sae.pt').read_bytes()
    files = dict(sae=sae, obs=file_of(obs), activations=file_of(acts[torch.randperm(len(acts))]))
    loaded = page.post(f'/model/{walker}/upload_sae', files={k: (k, v) for k,v in files.items()}).json()
    assert not loaded['has_cached_data'] and 'another order' in loaded['why']
    answer = page.post(f'/model/{walker}/interpret_features', json=dict(target_dim=0))
    assert answer.status_code==400 and answer.json()['detail'].startswith('Need SAE + cached data')
    only = page.post(f'/model/{walker}/upload_sae', files=dict(sae=('sae', sae))).json()
    assert not only['has_cached_data'] and 'cached_obs.pt' in only['why']


def test_the_guides_own_family_of_files(page):
    "17 -> 32 -> 32 -> 32 -> 6, GELU, no biases; TopKSAE without biases; tap 3 fits and tap 4 doesn't"
    from steerlens.app.policies import as_policy
    state = mlp(17, 32, 32, 32, 6)
    m = upload(page, file_of(state)).json()
    assert m['summary']['activation']=='gelu' and m['worlds']==['Walker2d-v5']
    obs = torch.randn(2000, 17)
    acts = as_policy(state).passes(obs)[3]
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    sae = {'encoder.weight': both, 'decoder.weight': both.T.contiguous()}
    file = file_of(dict(sae_state=sae, d_in=32, d_latent=64, k=32, tap_index=3))
    parts = dict(sae=('s', file), obs=('o', file_of(obs)), activations=('a', file_of(acts)))
    loaded = page.post(f"/model/{m['model_id']}/upload_sae", files=parts).json()
    assert loaded['tap_index']==3 and loaded['has_cached_data'] and loaded['unexplained']<1e-6


def test_a_run_is_cancelled_at_once(page, walker):
    page.post(f'/model/{walker}/sae_perturb', json=dict(feature_idx=3, alpha=.1))
    run = page.post(f'/model/{walker}/save_and_run', json=dict(n_seeds=50, steps=1500)).json()['run_id']
    while page.get(f'/run/{run}').json()['progress']==0: time.sleep(.1)
    assert page.post(f'/run/{run}/cancel').json()==dict(ok=True)
    assert page.get(f'/run/{run}').json()['state']=='cancelled'
    after = finished(page, page.post(f'/model/{walker}/save_and_run', json=dict(n_seeds=1, steps=20, video=False)))
    assert after['state']=='done'


def test_an_empty_gate_is_refused_by_every_edit(page, walker):
    for path,ask in (('sae_perturb', dict(alpha=.1)), ('calibrate', dict(measure='effort'))):
        asked = page.post(f'/model/{walker}/{path}', json=ask | dict(feature_idx=3, steps=[9, 9]))
        assert (asked.status_code, 'first before end' in asked.text)==(400, True)
        for steps in ([0, 10**24], [-1, 5]):
            asked = page.post(f'/model/{walker}/{path}', json=ask | dict(feature_idx=3, steps=steps))
            assert asked.status_code==400 and '1000000' in asked.text or 'greater than or equal to 0' in asked.text


def test_no_alpha_is_found_under_a_gate_that_never_opens(page, walker):
    asked = dict(feature_idx=131, measure='effort', steps=[5000, 5001])
    told = finished(page, page.post(f'/model/{walker}/calibrate', json=asked))
    assert (told['state'], 'it never opened' in told['message'])==('failed', True)


@pytest.mark.parametrize('wrong', [dict(target=0), dict(measure='nope'), dict(first_seed=7)])
def test_what_can_not_be_calibrated_is_refused_at_once(page, walker, wrong):
    asked = dict(feature_idx=3, measure='speed') | wrong
    assert page.post(f'/model/{walker}/calibrate', json=asked).status_code==400


def test_edits_at_once_are_all_kept(page, walker):
    def edit(i):
        return page.post(f'/model/{walker}/edit_at', json=dict(key='out.weight', index=[0, i], op='set', value=5.))
    with ThreadPoolExecutor(16) as many: answers = [*many.map(edit, range(48))]
    assert {a.json()['after'] for a in answers}=={5.}
    model = page.get(f'/model/{walker}').json()
    assert sorted(e['index'][1] for e in model['weight_edits'])==[*range(48)]
    saved = upload(page, page.get(f'/model/{walker}/save').content, 'p.safetensors').json()['model_id']
    values = page.get(f'/model/{saved}/layer_weights/out.weight').json()['values'][0]
    assert values[:48]==[5.]*48 and values[48]!=5


def test_latents_are_read_under_the_weights_as_they_are_now(page, walker):
    at = f'/model/{walker}'
    def r2(): return page.post(f'{at}/interpret_features', json=dict(target_dim=0)).json()['r2']
    before,fits = r2(), page.get(at).json()['sae']['unexplained']
    page.post(f'{at}/perturb', json=dict(key='layers.0.0.weight', op='add_noise', value=.3))
    assert r2()!=before and page.get(at).json()['sae']['unexplained']!=fits
    page.post(f'{at}/perturb', json=dict(key='layers.2.0.weight', op='set', value=0))
    assert r2() is None and page.get(at).json()['sae']['unexplained'] is None
    page.post(f'{at}/sae_perturb', json=dict(feature_idx=3, alpha=1.))
    assert 'tap 5 puts out the same in every row' in page.post(f'{at}/diagnose').json()['reasons'][0]['words']
    page.post(f'{at}/reset')
    assert r2()==before and page.get(at).json()['sae']['unexplained']==fits


def test_walks_that_end_before_there_is_a_gait_have_none(page, walker):
    page.post(f'/model/{walker}/sae_perturb', json=dict(feature_idx=131, alpha=5.))
    asked = page.post(f'/model/{walker}/save_and_run', json=dict(n_seeds=3, steps=300, video=False))
    run = finished(page, asked)['result']
    rows = {(r['arm'], r['measure']): r for r in run['table']}
    assert [rows['plus','speed'][k] for k in ('n', 'mean', 'beyond_placebo')]==[0, None, None]
    assert rows['plus','steps']['n']==3 and 'plus' in run['too_much'] and run['no_effect']==[]
    assert 'too early to speak of gait' in run['notes'][0]['words']


def test_a_policy_of_another_world_is_searched_and_diagnosed(page):
    "Pendulum, which is no world of the studio's own; its rows come with the autoencoder"
    state = mlp(3, 8, 1)
    at = f"/model/{upload(page, file_of(state), activation='tanh').json()['model_id']}"
    obs = torch.randn(300, 3)
    both = torch.cat([torch.eye(8), -torch.eye(8)])
    weights = {'encoder.weight': both, 'decoder.weight': both.T.contiguous()}
    sae = dict(sae_state=weights, d_in=8, d_latent=16, k=8, tap_index=1)
    acts = (obs@state['0.weight'].T).tanh()
    parts = dict(sae=('s', file_of(sae)), obs=('o', file_of(obs)), activations=('a', file_of(acts)))
    assert page.post(f'{at}/upload_sae', files=parts).json()['has_cached_data']
    page.post(f'{at}/sae_perturb', json=dict(feature_idx=0, alpha=1.))
    for body in (None, dict(env_id='Pendulum-v1')): assert page.post(f'{at}/diagnose', json=body).json()['reasons']
    found = finished(page, page.post(f'{at}/search', json=dict(env_id='Pendulum-v1', measure='effort')))
    assert found['state']=='done' and found['result']['tried']==16, found['message']


def test_what_is_deleted_is_gone_and_what_is_unknown_says_so(page, walker):
    run = finished(page, page.post(f'/model/{walker}/save_and_run', json=dict(n_seeds=1, steps=20, video=False)))
    assert page.delete(f'/model/{walker}').json()==dict(ok=True)
    for path in (f'/model/{walker}', f"/run/{run['run_id']}", '/model/nonsense', '/run/nonsense'):
        assert page.get(path).status_code==404


def test_models_are_listed_to_their_own_browser_only(server):
    mine,yours = (httpx.Client(base_url=server, timeout=60) for _ in range(2))
    own = mine.post('/embedded').json()['model_id']
    assert [m['model_id'] for m in mine.get('/models').json()['models']]==[own]
    assert yours.get('/models').json()==dict(models=[])


def test_pages_of_other_sites_are_refused(page, server, walker):
    for headers in (dict(origin='http://evil.example'), dict(origin='null'), {'sec-fetch-site': 'cross-site'}):
        assert page.post('/embedded', headers=headers).status_code==403
    assert page.get('/models', headers=dict(host='evil.example')).status_code==403
    assert page.post('/models', headers=dict(origin=server)).status_code!=403
    answer = page.get(f'/model/{walker}', headers=dict(origin='http://evil.example'))
    assert 'access-control-allow-origin' not in answer.headers


def test_no_more_runs_than_a_browser_may_wait_for(page, walker):
    long = dict(n_seeds=100, steps=1500, video=False)
    asked = [page.post(f'/model/{walker}/save_and_run', json=long) for _ in range(5)]
    assert {a.status_code for a in asked}=={200, 429}
    for a in asked:
        if a.status_code==200: page.post(f"/run/{a.json()['run_id']}/cancel")


def test_users_at_once_get_their_own_results(server):
    "Each edits a latent of its own; every answer names it"
    wrong = []
    def use(j):
        with httpx.Client(base_url=server, timeout=300) as page:
            at = f"/model/{page.post('/embedded').json()['model_id']}"
            page.post(f'{at}/sae_perturb', json=dict(feature_idx=j, alpha=.1+j))
            answer = page.post(f'{at}/save_and_run', json=dict(n_seeds=1, steps=20+j, first_seed=j, video=False))
            run = finished(page, answer)
            applied = run['result']['applied']['sae']
            same = applied['feature_idx']==j and applied['alpha']==.1+j and run['result']['seeds']==[j]
            if not same or page.get(f'{at}/latent/{j}').json()['feature_idx']!=j: wrong.append((j, run))
    users = [threading.Thread(target=use, args=(j,)) for j in range(8)]
    for u in users: u.start()
    for u in users: u.join()
    assert not wrong


def test_no_request_of_any_shape_breaks_it(server, page):
    "Property-based: whatever fits the server's own schema, on a model that is there, is answered, and not with a 5xx"
    schemathesis = pytest.importorskip('schemathesis')
    from hypothesis import HealthCheck, given, settings
    schema,walker = schemathesis.openapi.from_url(f'{server}/openapi.json'), page.post('/embedded').json()['model_id']
    calm = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    answered = {}

    def ask(operation):
        runs = operation.path.endswith('save_and_run')
        @given(case=operation.as_strategy())
        @settings(calm, max_examples=15)
        def asked(case):
            if 'model_id' in case.path_parameters: case.path_parameters['model_id'] = walker
            if runs and isinstance(case.body, dict): case.body |= dict(n_seeds=1, steps=10)
            status = case.call(timeout=30).status_code
            answered.setdefault(operation.path, set()).add(status)
            assert status < 500, case.as_curl_command()
        asked()

    operations = [o.ok() for o in schema.get_all_operations()]
    for o in operations:
        if o.method!='delete' and not o.path.endswith('/events'): ask(o)
    fine = [path for path,statuses in answered.items() if 200 in statuses]
    assert len(fine) >= 12, f'only {fine} were ever answered: this test asks for nothing'


@pytest.mark.parametrize('headers', [dict(host='['), dict(origin='http://[')])
def test_half_an_address_is_no_server(page, headers): assert page.post('/embedded', headers=headers).status_code==403


def test_half_a_character_is_answered_in_whole_ones(page, walker):
    def raw(path, body):
        return page.post(f'/model/{walker}/{path}', content=body, headers={'content-type': 'application/json'})
    assert raw('edit_at', '{"key": "\\ud800", "index": [0], "op": "set", "value": 1}').status_code==400
    assert raw('load_sae', json.dumps(dict(artifacts_dir='a'*300))).status_code==400
    for key in ('\ud800.weight', ''): assert upload(page, file_of({key: torch.ones(2, 3)})).status_code==400
    assert upload(page, file_of(dict(mlp(4, 4), activation='\ud800'))).status_code==400
    assert page.get('/models').status_code==200


def test_a_server_that_is_ended_leaves_no_films(root, tmp_path):
    import signal
    def folders(): return [*tmp_path.glob('steerlens-studio-*')]
    command,env = [str(BIN/'steerlens'), 'studio', '--port', '0'], os.environ | dict(TMPDIR=str(tmp_path))
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=env) as process:
        address = process.stdout.readline().split()[1]
        httpx.get(f'{address}/models', timeout=30)
        assert folders()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert not folders()
