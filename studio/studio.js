// The page of the policy studio: what the server says is drawn, what is shown is sent. Text from the server is text.

const $ = id => document.getElementById(id)

function h(name, ...children) { // an element: 'tag.class', properties if the next is a plain object, children
  const [tag, ...classes] = name.split('.'), el = document.createElement(tag)
  const props = children[0]?.constructor === Object ? children.shift() : {}
  el.classList.add(...classes)
  for (const [k, v] of Object.entries(props)) {
    if (v == null || v === false) continue
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v)
    else if (k.startsWith('--')) el.style.setProperty(k, v)
    else el.setAttribute(k, v === true ? '' : v)
  }
  el.append(...children.flat(9).filter(c => c != null && c !== false))
  return el
}

const SVG = 'http://www.w3.org/2000/svg'
function s(tag, props = {}, ...children) {
  const el = document.createElementNS(SVG, tag)
  for (const [k, v] of Object.entries(props)) el.setAttribute(k, v)
  el.append(...children)
  return el
}

// ---------------------------------------------------------------- numbers and words

const clamp = (x, lo, hi) => Math.min(hi, Math.max(lo, x))
const range = n => [...Array(n).keys()]
const minus = text => text.replace('-', '−')

function num(x, digits = 3) {
  if (x == null) return '–'
  if (x && Math.abs(x) < 1e-4) return minus(x.toExponential(0))
  const rounded = Number(x.toPrecision(digits))
  return minus(Math.abs(rounded) >= 1e5 ? rounded.toExponential(2) : String(rounded))
}
const signed = (x, digits) => x == null ? '–' : (x > 0 ? '+' : '') + num(x, digits)
const percent = x => x == null ? '–' : `${num(100 * x, 2)} %`
const plural = (n, one) => `${n} ${one}${n === 1 ? '' : 's'}`
const is01 = values => values.every(x => x === 0 || x === 1)
const mean = values => values.reduce((a, b) => a + b, 0) / (values.length || 1)
const readable = name => name.replaceAll('_', ' ')
const capital = text => text[0].toUpperCase() + text.slice(1)

// ---------------------------------------------------------------- the server

async function api(path, body, method = body === undefined ? 'GET' : 'POST') {
  const how = { method }
  if (body instanceof FormData) how.body = body
  else if (body !== undefined) {
    how.body = JSON.stringify(body)
    how.headers = { 'content-type': 'application/json' }
  }
  const answer = await fetch(path, how).catch(() => {
    throw new Error('The studio does not answer. Is “steerlens studio” still running? Start it, and try again.')
  })
  const said = await answer.json().catch(() => null)
  if (answer.ok && said) return said
  const what = path.split('?')[0].split('/').pop()
  throw new Error(said?.detail?.toString() ?? `${what}: the server failed (${answer.status}); its log says why.`)
}

const S = {} // what is shown: model, sae, targets, features, j, alpha, ...
const ask = (path, body) => api(`/model/${S.model.model_id}/${path}`, body)

const turns = {}
function newest(name) { // is this still the latest of its kind?
  const mine = turns[name] = (turns[name] ?? 0) + 1
  return () => turns[name] === mine
}

const FIXES = [ // an error's words -> what a button beside it offers
  [/tap (\d+) fits/, m => S.artifacts && [`Use tap ${m[1]}`, () => loadSae(+m[1])]],
  [/say activation=(\w+)/, m => S.file && [`Upload again as ${m[1]}`, () => again(m[1])]],
  [/Need SAE|no SAE is loaded/, () => ['Load SAE', () => openSae(true)]],
  [/SAE not found/, () => ['Upload the files instead', () => { openSae(true); $('sae-files').click() }]],
  [/no such model/, () => ['Start again', start]],
]

function complain(where, message) {
  const fixes = FIXES.map(([words, fix]) => words.test(message) && fix(words.exec(message))).filter(Boolean)
  const buttons = fixes.map(([label, onclick]) => h('button', { type: 'button', onclick, class: 'fix' }, label))
  $(where).replaceChildren(h('span', message), ...buttons)
}

async function attempt(where, button, what) { // errors in one line near where they happened
  if (button?.getAttribute('aria-busy') === 'true') return
  button?.setAttribute('aria-busy', 'true')
  $(where).replaceChildren()
  try { return await what() } catch (e) {
    console.warn(e)
    complain(where, e.message)
  } finally { button?.removeAttribute('aria-busy') }
}

const say = text => { $('status').textContent = text }
const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([v, label]) => h('option', { value: v }, label)))
  if (value != null) select.value = value
}

function unfold(button, box, open = box.hidden) {
  box.hidden = !open
  button.setAttribute('aria-expanded', open)
}

// ---------------------------------------------------------------- light and dark

let inks = {}
function ink(name) { // a colour of the stylesheet, for a canvas
  if (inks[name]) return inks[name]
  const probe = $('status')
  probe.style.color = `var(--${name})`
  return inks[name] = getComputedStyle(probe).color
}

function recolour() { inks = {}; net.draw(); heat.draw() }

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme
  try { theme && localStorage.setItem('theme', theme) } catch { /* private window */ }
  recolour()
}

$('theme').onclick = () => {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches
  const now = document.documentElement.dataset.theme ?? (dark ? 'dark' : 'light')
  setTheme(now === 'dark' ? 'light' : 'dark')
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour)

// ---------------------------------------------------------------- start

const ACTIVATIONS = ['gelu', 'relu', 'tanh', 'silu', 'elu', 'leaky_relu', 'sigmoid', 'identity']
options($('activation'), [['', 'as the file says, or gelu'], ...ACTIVATIONS.map(a => [a, a])])
options($('squash'), [['', 'as the file says, or as they are'], ['none', 'as they are'], ['tanh', 'through tanh']])

$('take-walker').onclick = () => attempt('start-error', $('take-walker'), async () => open(await api('/embedded', {})))

function upload(file, activation = $('activation').value, squash = $('squash').value) {
  const form = new FormData()
  form.append('file', file)
  if (activation) form.append('activation', activation)
  if (squash) form.append('squash', squash)
  const where = S.model ? 'network-error' : 'start-error'
  return S.opening = attempt(where, $('drop'), async () => open(await api('/upload', form), file))
}

async function again(activation) { // the same policy, read otherwise, with the same autoencoder
  const { artifacts } = S, tap = $('tap-index').value
  await upload(S.file, activation)
  if (artifacts) { S.artifacts = artifacts; await loadSae(tap) }
}

$('policy-file').onchange = e => {
  if (e.target.files[0]) upload(e.target.files[0])
  e.target.value = '' // the same file may be tried again
}
for (const name of ['dragover', 'dragleave', 'drop']) addEventListener(name, e => {
  e.preventDefault()
  document.body.classList.toggle('over', name === 'dragover')
  if (name === 'drop' && e.dataTransfer.files[0]) dropped([...e.dataTransfer.files])
})

function dropped(files) { // artifacts go to the model that is open, anything else is a policy
  if (S.model && files.some(f => role(f.name) !== 'policy')) return uploadSae(files)
  return upload(files[0])
}

function start() {
  delete S.model
  history.replaceState(null, '', location.pathname)
  net.stop()
  document.body.classList.add('empty')
  for (const id of ['studio', 'result', 'model-line']) $(id).hidden = true
  $('start').hidden = false
  $('start-title').scrollIntoView({ block: 'center' })
}
$('home').onclick = $('new-model').onclick = e => { e.preventDefault(); $('models-menu').open = false; start() }

async function open(model, file) {
  for (const id of running) api(`/run/${id}/cancel`, {}).catch(() => {}) // of the model before
  Object.assign(S, { model, file, sae: null, targets: null, features: [], j: null, card: null, picked: false,
    alpha: 0, touched: false, typical: null, artifacts: null })
  history.replaceState(null, '', `#${model.model_id}`)
  document.body.classList.remove('empty')
  $('start').hidden = $('result').hidden = true
  $('studio').hidden = $('model-line').hidden = false
  const { layers, activation, squash } = model.summary, widths = layers.map(l => l.size).join(' → ')
  const kinds = squash === 'none' ? activation : `${activation}, ${squash}`
  $('model-line').replaceChildren(h('b', model.name ?? 'policy'), h('span', ` ${widths}, ${kinds}`))
  options($('tap-index'), [['', 'as the file says'], ...model.summary.taps.map(t =>
    [t.tap_index, `${t.tap_index}: ${t.kind}, ${t.width}`])])
  $('env').value = model.worlds[0] ?? ''
  $('worlds').replaceChildren(...model.worlds.map(w => h('option', { value: w })))
  showAssumed()
  for (const box of document.querySelectorAll('#studio :is(.error, .said, .job), #calibrate-result, #search-result'))
    box.replaceChildren()
  scrollTo({ top: 0 })
  setEdits(model.weight_edits)
  heat.open()
  net.open()
  listModels()
  $('run').disabled = true // until there is something to run
  try { await showSae(model.sae, model.perturbation) } finally { $('run').disabled = false }
  showMode(!model.sae && model.weight_edits?.length ? 'weights' : S.mode ?? 'latent')
}

function showAssumed() { // what the file doesn't say
  const { assumed = [], left_out = [], activation } = S.model.summary
  const parts = []
  if (assumed.includes('activation')) {
    const other = h('select', { id: 'assumed-activation', 'aria-label': 'Activation of this policy' })
    options(other, ACTIVATIONS.map(a => [a, a]), activation)
    other.onchange = () => upload(S.file, other.value)
    parts.push('The file does not name its activation; read as ', S.file ? other : h('b', activation), '. ')
  }
  if (assumed.includes('squash')) parts.push('Nor does it say whether actions pass through tanh; taken as they are. ')
  if (left_out.length) parts.push(`Left out, no part of the policy: ${left_out.slice(0, 4).join(', ')}.`)
  $('assumed').replaceChildren(...parts)
  $('assumed').hidden = !parts.length
}

// ---------------------------------------------------------------- the autoencoder

const openSae = show => unfold($('load-sae-open'), $('sae-form'), show)
$('load-sae-open').onclick = () => openSae()

function role(name) {
  if (/obs/i.test(name)) return 'obs'
  if (/activations|acts/i.test(name)) return 'activations'
  return /sae/i.test(name) ? 'sae' : 'policy'
}

function uploadSae(files, tap = $('tap-index').value) {
  openSae(true)
  return attempt('sae-error', $('load-sae'), async () => {
    const form = new FormData()
    for (const f of files) form.append(role(f.name) === 'policy' ? 'sae' : role(f.name), f)
    if (!form.has('sae')) throw new Error('SAE not found: choose walker_sae.pt, too.')
    if (tap !== '') form.append('tap_index', tap)
    await S.opening // they go to the policy that is on its way
    S.artifacts = { files }
    await showSae(await api(`/model/${S.model.model_id}/upload_sae`, form))
  })
}
$('sae-files').onchange = e => {
  const files = [...e.target.files]
  e.target.value = ''
  if (files.length) uploadSae(files)
}

$('sae-form').onsubmit = e => {
  e.preventDefault()
  S.artifacts = { dir: $('artifacts-dir').value }
  loadSae($('tap-index').value)
}

function loadSae(tap) {
  $('tap-index').value = tap
  if (S.artifacts.files) return uploadSae(S.artifacts.files, tap)
  return attempt('sae-error', $('load-sae'), async () => {
    const body = { artifacts_dir: S.artifacts.dir }
    if (tap !== '') body.tap_index = +tap
    await showSae(await ask('load_sae', body))
  })
}

async function showSae(sae, perturbation) {
  Object.assign(S, { sae, features: [], j: null, card: null, picked: false, touched: false, typical: null })
  $('load-sae-open').textContent = sae ? 'Load another SAE' : 'Load SAE'
  $('sae-line').textContent = sae ? saeLine(sae) : 'No autoencoder yet: load one to push latents, or edit raw weights.'
  $('reading').hidden = !sae?.has_cached_data
  $('card').hidden = true
  $('latents-error').replaceChildren()
  options($('latent'), [['', 'load an SAE first']])
  openSae(!sae)
  $('sae-error').replaceChildren()
  $('network-note').textContent = IDLE
  setAlpha(0, false)
  plan()
  if (!sae) return
  if (sae.has_cached_data) await attempt('latents-error', null, readLatents)
  else complain('latents-error', `Need SAE + cached data: ${sae.why}. Latents can be pushed, but not interpreted.`)
  if (!S.features.length) options($('latent'), range(Math.min(sae.d_latent, 4096)).map(j => [j, `latent ${j}`]))
  await choose(perturbation?.feature_idx ?? best()?.feature_idx ?? 0)
  if (!perturbation) return
  setAlpha(perturbation.alpha)
  $('gate-from').value = perturbation.steps?.[0] ?? ''
  $('gate-to').value = perturbation.steps?.[1] ?? ''
}

const IDLE = 'Its units glow once an SAE with cached data is loaded.'

function saeLine(sae) {
  const tap = S.model.summary.taps.find(t => t.tap_index === sae.tap_index)
  const where = `tap ${sae.tap_index}${tap ? ` (${tap.kind}, ${tap.width} wide)` : ''}`
  const fits = sae.unexplained == null ? 'which puts out the same in every step: there is nothing to explain'
    : `${percent(sae.unexplained)} of the variance unexplained`
  const now = S.edits?.length ? ` with ${plural(S.edits.length, 'weight edit')}` : ''
  return `${sae.d_latent} latents${sae.k ? `, ${sae.k} active at a time` : ''}, at ${where}; ${fits}${now}.`
}

async function readLatents() {
  const t = S.targets = await ask('targets')
  const groups = Object.entries(t).filter(([, names]) => names.length).map(([kind, names]) =>
    h('optgroup', { label: kind }, names.map((n, i) => h('option', { value: `${kind}:${i}` }, n))))
  $('target').replaceChildren(...groups)
  await net.load(0)
  await interpret()
  net.draw()
}

async function reread(sae) { // under the weights as they are now
  if (!sae) return
  S.sae = sae
  $('sae-line').textContent = saeLine(sae)
  if (!sae.has_cached_data) return
  net.stop()
  Object.assign(net, { steps: [], most: null })
  await attempt('latents-error', null, async () => {
    await net.load(0, false)
    await interpret()
    await choose(S.j)
  })
}

async function interpret() {
  const mine = newest('interpret')
  const [target, dim] = $('target').value.split(':')
  const r = await ask('interpret_features', { target, target_dim: +dim, top_k: S.sae.d_latent })
  if (!mine()) return
  S.features = r.features
  const name = r.name ?? S.targets[target][dim]
  const interval = r.r2_lo == null ? '' : ` (95 %: ${num(r.r2_lo)} to ${num(r.r2_hi)})`
  $('fit-line').replaceChildren(r.r2 == null ? `Nothing to predict in ${name}.`
    : h('span', `Latents predict ${name} with R² ${num(r.r2)} on held-out walks${interval}.`))
  const notes = [`${r.n_rows.toLocaleString('en')} steps, λ ${num(r.lam)}`, ...r.notes ?? []]
  if (S.edits?.length) notes.push('Steps were recorded before the weights were edited; the rest is as it is now')
  if (r.auc != null) notes.unshift(`AUC ${num(r.auc)}`)
  if (r.placebo?.length) notes.unshift(`Targets that mean nothing reach ${num(Math.max(...r.placebo), 2)}`)
  $('fit-note').textContent = `${notes.join('. ')}.`
  showLatents()
}

const MORE = 40
function showLatents(n = MORE) {
  const by = f => f[$('sort').value] ?? f.weight, size = f => Math.abs(by(f))
  const list = S.features.sort((a, b) => size(b) - size(a)), most = size(list[0]) || 1
  const rows = list.slice(0, n).map(f => latentRow(f, by(f), most))
  if (list.length > n) rows.push(h('button', { type: 'button', class: 'more', onclick: () => showLatents(n + 200) },
    `Show ${Math.min(200, list.length - n)} more of ${list.length}`))
  $('latent-list').replaceChildren(...rows)
  const choice = f => [f.feature_idx, `latent ${f.feature_idx}, weight ${signed(f.weight)}`]
  options($('latent'), list.slice(0, 4096).map(choice))
  markLatent()
}

function latentRow(f, value, most) {
  const j = f.feature_idx, share = value / most, often = f.active == null ? '' : percent(f.active)
  const bar = h('span', { class: share < 0 ? 'bar neg' : 'bar', '--share': Math.abs(share) })
  const label = `Latent ${j}, weight ${signed(f.weight)}${often && `, active ${often}`}`
  const cells = [h('span.id', j), h('span.bars', bar), h('span.value', signed(value)), h('span.active', often)]
  const props = { type: 'button', 'data-j': j, 'data-testid': `latent-${j}`, 'aria-label': label }
  return h('button.latent', { ...props, onclick: () => choose(j, true) }, cells)
}

const best = () => S.features.find(f => f.active >= .01) ?? S.features[0] // a direction that is really in use

function markLatent() {
  for (const b of $('latent-list').children) b.setAttribute('aria-pressed', +b.dataset.j === S.j)
  if (S.j == null) return
  const known = [...$('latent').options].some(o => +o.value === S.j)
  if (!known) $('latent').append(h('option', { value: S.j }, `latent ${S.j}`))
  $('latent').value = S.j
}

$('latent-list').onkeydown = e => {
  const step = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[e.key]
  if (!step) return
  e.preventDefault()
  document.activeElement[step]?.focus()
}
$('target').onchange = () => attempt('latents-error', null, async () => {
  await interpret()
  if (!S.picked) await choose(best().feature_idx)
})
$('sort').onchange = () => showLatents()
$('latent').onchange = () => choose(+$('latent').value, true)

async function choose(j, picked = false) {
  const mine = newest('card')
  Object.assign(S, { j, card: null })
  S.picked ||= picked
  markLatent()
  $('apply-line').textContent = ''
  plan()
  if (S.sae.has_cached_data) await attempt('card-error', null, async () => {
    const card = await ask(`latent/${j}`)
    if (!mine()) return
    S.card = card
    showCard(card)
  })
  if (!mine()) return
  if (!S.touched) setAlpha(nudge(), false)
  noteAlpha()
  $('network-note').textContent = S.card ? `Ringed: the units that latent ${j} writes to.` : IDLE
  net.draw()
}

// ---------------------------------------------------------------- a latent's card

function showCard(c) {
  $('card').hidden = false
  $('card-title').textContent = `Latent ${c.feature_idx}`
  const often = c.mean_active == null ? 'never active in these walks'
    : `active in ${percent(c.active)} of the steps, ${num(c.mean_active)} on average then`
  $('card-facts').textContent = `${often}. Decoder length ${num(c.decoder_norm)}.`
  const parts = [tracePart(c), eventsPart(c), drivesPart(c), kinPart(c), momentsPart(c)]
  $('card-body').replaceChildren(...parts.filter(Boolean))
}

function tracePart({ trace, firings }) {
  if (!trace?.values?.length) return
  const { values, events = [] } = trace, n = values.length, most = Math.max(...values, 1e-9)
  const points = values.map((v, i) => `${i},${(58 - 54 * v / most).toFixed(1)}`).join(' ')
  const label = `Activation over ${n} steps, at most ${num(most)}`
  const line = stretched('spark', n, 60, label, s('polyline', { points: `0,58 ${points} ${n},58` }))
  const kinds = [...new Set(events)].sort()
  const part = ([e, a, b]) => s('rect', { x: a, width: b - a, y: 0, height: 1, class: `e${kinds.indexOf(e) % 4}` })
  const strip = stretched('strip', n, 1, 'What happens in each step', ...spans(events).map(part))
  const key = kinds.map((k, i) => h('span', { class: `key e${i % 4}` }, readable(k)))
  const title = `It fires ${plural(firings, 'time')} in all walks; here the one where it peaks`
  return h('figure.wide', { 'data-testid': 'trace' }, h('figcaption', title), line, kinds.length ? strip : null,
    h('p.axis', h('span', 'step 0'), h('span', n)), h('p.axis', h('span.keys', key)))
}

function stretched(name, w, height, label, ...children) { // an SVG as wide as its place
  const box = { viewBox: `0 0 ${w} ${height}`, preserveAspectRatio: 'none' }
  return s('svg', { ...box, class: name, role: 'img', 'aria-label': label }, ...children)
}

function spans(values) { // stretches of equal values: [value, first, end]
  const found = []
  values.forEach((v, i) => v === found.at(-1)?.[0] ? found.at(-1)[2]++ : found.push([v, i, i + 1]))
  return found
}

const fill = x => h('span', { class: x < 0 ? 'fill neg' : 'fill', '--share': Math.abs(x) })
const mark = at => h('span.mark', { '--at': at })
function row(name, track, value, more = '') { // a name, bars from the middle, a number
  return h('div', { class: `measure-row ${more || ''}` }, h('span', name), h('span.track', track), h('span', value))
}

function eventsPart({ events }) {
  if (!events?.length) return
  const [first] = events, most = Math.max(...events.map(e => e.active)) || 1
  const more = `${num(first.lift, 2)} × as often active in ${readable(first.event)}`
  const title = first.lift > 1.05 ? more : 'Active alike in all phases'
  const track = e => [fill(e.active / most), mark(e.base / most)]
  const rows = events.map(e => row(readable(e.event), track(e), percent(e.active), 'from-left'))
  return h('figure', { 'data-testid': 'events' }, h('figcaption', title), rows,
    h('p.note', 'Share of steps; the line is its share in all steps.'))
}

function drivesPart(c) {
  const effect = c.drives?.effect ?? c.drives
  if (!effect?.length) return
  const chance = c.drives.placebo ?? effect.map(() => 0), names = S.targets.action
  const most = Math.max(...effect.map(Math.abs), ...chance) || 1
  const top = effect.reduce((best, x, i) => Math.abs(x) > Math.abs(effect[best]) ? i : best, 0)
  const times = Math.abs(effect[top]) / chance[top], far = `, ${num(times, 2)} × as far as a random direction`
  const title = `Pushes ${names[top]} ${effect[top] > 0 ? 'up' : 'down'}${Number.isFinite(times) ? far : ''}`
  const random = x => h('span.chance', { '--share': x / most })
  const rows = effect.slice(0, 24).map((x, i) => row(names[i], [random(chance[i]), fill(x / most)], signed(x, 2)))
  return h('figure', { 'data-testid': 'drives' }, h('figcaption', title), rows,
    h('p.note', 'Change of each action for α = 1, in one step; dashed: random directions.'))
}

function kinPart({ neighbours = [], cluster }) {
  if (!neighbours.length) return
  const near = neighbours.map(({ feature_idx: j, cosine }) =>
    h('button.chip', { type: 'button', onclick: () => choose(j, true) }, `${j} `, h('small', num(cosine, 2))))
  const alike = neighbours.filter(n => n.beyond).length
  const title = alike ? `${plural(alike, 'neighbour')} beyond chance` : 'Points its own way: no neighbour beyond chance'
  return h('figure', { 'data-testid': 'neighbours' }, h('figcaption', title), h('div.chips', near),
    h('p.note', `Cosine of decoder directions${cluster >= 0 ? `; cluster ${cluster}` : ''}.`))
}

function momentsPart({ top = [] }) { // pictures are made when they are asked for, each by walking again
  const some = top.filter(t => t.frame?.startsWith('/')).slice(0, 4)
  if (!some.length) return
  const note = h('p.note'), box = h('div.frames')
  const fails = img => () => {
    img.remove()
    note.textContent = 'Walks that were not recorded here can’t be shown.'
  }
  const show = ({ target }) => target.open && !box.firstChild && box.append(...some.map(t => {
    const img = h('img', { src: t.frame, width: 400, height: 200, alt: `Row ${t.row}, activation ${num(t.value)}` })
    img.onerror = fails(img)
    return img
  }))
  const summary = h('summary', 'Show the moments where it is most active')
  return h('details.wide', { 'data-testid': 'moments', ontoggle: show }, summary, box, note)
}

// ---------------------------------------------------------------- alpha

const MOST = 5 // the slider is cubic: fine near zero, where a walker still walks
const toAlpha = p => Number((MOST * p ** 3).toPrecision(2))
const toPlace = a => Math.cbrt(clamp(a, -MOST, MOST) / MOST)

for (const a of [-5, -1, -.1, 0, .1, 1, 5]) $('ticks').append(h('span', { '--at': (toPlace(a) + 1) / 2 }, num(a)))

function nudge() { // half a percent of a typical activation's length, rounded up: mostly survived; or 0.1
  const length = S.typical ? .005 * S.typical / (S.card?.decoder_norm || 1) : .1
  return clamp(Math.ceil(100 * length) / 100, .01, MOST)
}

function setAlpha(a, byHand = true) {
  S.alpha = a
  S.touched = byHand
  const place = toPlace(a)
  $('alpha').value = place
  $('alpha').setAttribute('aria-valuetext', `alpha ${signed(a)}`)
  if (+$('alpha-number').value !== a || $('alpha-number').value === '') $('alpha-number').value = a
  $('alpha').style.setProperty('--from', Math.min(.5, (place + 1) / 2))
  $('alpha').style.setProperty('--to', Math.max(.5, (place + 1) / 2))
  $('alpha').classList.toggle('neg', a < 0)
  noteAlpha()
  plan()
  net.draw()
}

function noteAlpha() {
  const length = Math.abs(S.alpha) * (S.card?.decoder_norm ?? 1)
  const parts = []
  if (S.typical) parts.push(`As long as ${percent(length / S.typical)} of a typical activation here`)
  if (S.card?.mean_active) parts.push(`this latent by itself writes ${num(S.card.mean_active, 2)} when active`)
  const told = parts.length ? `${parts.join('; ')}.` : ''
  $('alpha-note').textContent = S.alpha ? told : 'Nothing is added: a run shows the policy as it is.'
}

let later
function moved(a) {
  if (!Number.isFinite(a)) return
  setAlpha(a)
  hush()
  $('apply-line').textContent = ''
  clearTimeout(later)
  later = setTimeout(() => S.sae && attempt('apply-error', null, apply), 300)
}

$('alpha').oninput = () => moved(toAlpha(+$('alpha').value))
$('alpha').ondblclick = $('alpha-zero').onclick = () => moved(0)
$('alpha-number').oninput = () => moved($('alpha-number').value === '' ? NaN : +$('alpha-number').value)
$('alpha').onkeydown = e => {
  const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[e.key]
  const end = { Home: -MOST, End: MOST, '0': 0 }[e.key]
  if (way === undefined && end === undefined) return
  e.preventDefault()
  const size = Math.abs(S.alpha), step = size < .1 ? .01 : size < 1 ? .05 : .25
  moved(end ?? clamp(Number((S.alpha + way * step * (e.shiftKey ? 5 : 1)).toFixed(2)), -MOST, MOST))
}
$('gate-from').onchange = $('gate-to').onchange = () => moved(S.alpha)

function gate() {
  const [from, to] = [$('gate-from').value, $('gate-to').value]
  if (from === '' && to === '') return
  const steps = [+from, to === '' ? +$('steps').value : +to]
  if (steps[0] >= steps[1]) throw new Error(`Steps ${steps.join(' to ')}: the first must come before the end.`)
  return steps
}

async function apply() {
  clearTimeout(later)
  const mine = newest('apply')
  if (!S.sae) throw new Error('no SAE is loaded; load one first')
  if ($('alpha-number').value === '') throw new Error('α is blank: write a number; 0 pushes nothing.')
  const body = { feature_idx: S.j, alpha: S.alpha }
  const steps = gate()
  if (steps) body.steps = steps
  const r = await ask('sae_perturb', body)
  if (!mine()) return
  $('apply-line').replaceChildren(h('b', 'Applied: '), r.message)
  if (!S.alpha) return
  const why = await ask('diagnose', where()).catch(() => ({ reasons: [] })) // a comment; the run itself tells, too
  if (mine() && why.reasons.length) $('apply-line').append(`. ${capital(why.reasons.map(x => x.words).join('; '))}.`)
}
$('apply').onclick = () => attempt('apply-error', $('apply'), apply)

// ---------------------------------------------------------------- which edit

function showMode(mode) {
  S.mode = mode
  for (const [tab, panel, name] of [['tab-latent', 'push', 'latent'], ['tab-weights', 'weights', 'weights']]) {
    $(tab).setAttribute('aria-selected', mode === name)
    $(tab).tabIndex = mode === name ? 0 : -1
    $(panel).hidden = mode !== name
  }
  hush()
  heat.draw()
  plan()
}
const hush = () => ['apply-error', 'weights-error', 'run-error'].forEach(id => $(id).replaceChildren())
$('tab-latent').onclick = () => showMode('latent')
$('tab-weights').onclick = () => showMode('weights')
document.querySelector('.tabs').onkeydown = e => {
  if (!e.key.startsWith('Arrow')) return
  showMode(S.mode === 'latent' ? 'weights' : 'latent')
  $(`tab-${S.mode}`).focus()
}

function plan() { // what a run would do, in words
  if (!S.model) return
  const edits = S.edits?.length ? plural(S.edits.length, 'weight edit') : '', a = Math.abs(S.alpha)
  const also = edits && `, all with ${edits}`
  const push = `Latent ${S.j} at ${signed(-a)}, baseline, ${signed(a)}, and a random direction${also}`
  const what = S.mode === 'weights' ? (edits ? `Baseline beside ${edits}` : 'No weight is edited: the baseline alone')
    : S.sae && S.j != null && a ? push : 'Nothing is pushed: the baseline alone'
  const where = $('env').value || 'name a world in the settings', seeds = plural(+$('n-seeds').value, 'seed')
  $('run-plan').textContent = `${what}; ${where}, ${seeds}, up to ${$('steps').value} steps.`
}
for (const id of ['env', 'n-seeds', 'steps']) $(id).addEventListener('input', plan)

// ---------------------------------------------------------------- what takes seconds

const DONE = ['done', 'failed', 'cancelled'], running = new Set()

function follow(run_id, box) { // progress until it is done: its result, or null if it was cancelled
  const bar = h('progress', { max: 1, value: 0, 'aria-label': 'Progress' })
  const words = h('span.words', 'Queued')
  const cancel = h('button', { type: 'button', 'data-testid': 'cancel' }, 'Cancel')
  const { model_id } = S.model
  let asked = false
  cancel.onclick = () => attempt('run-error', cancel, () => { asked = true; return api(`/run/${run_id}/cancel`, {}) })
  box.replaceChildren(bar, words, cancel)
  const began = performance.now()
  let state = { state: 'queued', progress: 0 }, quarter = 0, source, timer, tick
  running.add(run_id)
  return new Promise((resolve, reject) => {
    function close() {
      source?.close()
      clearTimeout(timer)
      clearInterval(tick)
      running.delete(run_id)
      box.replaceChildren()
    }
    function told(run) {
      bar.value = run.progress
      words.dataset.state = run.state
      state = run
      show()
      if (Math.floor(run.progress * 4) > quarter) say(`${percent(quarter = Math.floor(run.progress * 4) / 4)} done`)
      if (!DONE.includes(run.state)) return
      close()
      if (run.state === 'failed') reject(new Error(run.message || 'The run failed; the server’s log says why.'))
      else if (run.state === 'done' || asked) { say(capital(run.state)); resolve(run.result) }
      else api(`/model/${model_id}`).then(() => resolve(null), e => { net.stop(); reject(e) }) // deleted meanwhile?
    }
    function show() {
      const { progress } = state
      const share = progress < 1 ? `${Math.round(100 * progress)} %` : 'Finishing'
      const seconds = Math.round((performance.now() - began) / 1000)
      words.textContent = `${state.state === 'queued' ? 'Waiting for its turn' : share}, ${seconds} s`
    }
    async function poll() { // where events don't come through
      try { told(await api(`/run/${run_id}`)) } catch (e) { close(); return reject(e) }
      timer = setTimeout(poll, 1000)
    }
    tick = setInterval(show, 1000)
    source = new EventSource(`/run/${run_id}/events`)
    source.onmessage = e => told(JSON.parse(e.data))
    source.onerror = () => { source.close(); if (box.firstChild === bar) poll() }
  })
}

addEventListener('pagehide', () => { for (const id of running) navigator.sendBeacon(`/run/${id}/cancel`) }) // nobody waits any more

$('run').onclick = () => attempt('run-error', $('run'), async () => {
  $('apply-error').replaceChildren()
  if (S.mode === 'latent' && S.sae) await apply()
  else if (S.sae) await ask('sae_perturb', { feature_idx: 0, alpha: 0 })
  const number = id => $(id).value === '' ? null : +$(id).value
  const body = { ...where(), n_seeds: number('n-seeds'), first_seed: number('first-seed'), steps: number('steps') }
  body.video = $('video').checked
  const model = S.model.model_id
  const { run_id } = await ask('save_and_run', body)
  const result = await follow(run_id, $('run-job'))
  if (result && S.model?.model_id === model) showResult(result, run_id)
})

// ---------------------------------------------------------------- find alpha, find latents

const unfolds = (button, form) => { $(button).onclick = () => { fillMeasures(); unfold($(button), $(form)) } }
unfolds('find-alpha-open', 'find-alpha-form')
unfolds('find-latents-open', 'find-latents-form')

function fillMeasures() {
  const known = S.measures ?? ['speed', 'tilt', 'effort', 'return', 'steps']
  const choices = known.filter(m => m !== 'fell').map(m => [m, readable(m)])
  options($('cal-measure'), choices, $('cal-measure').value || choices[0][0])
  options($('search-measure'), [['', 'any measure of gait'], ...choices], $('search-measure').value)
}

const where = () => $('env').value.trim() ? { env_id: $('env').value.trim() } : {}

$('find-alpha-form').onsubmit = e => {
  e.preventDefault()
  attempt('apply-error', $('find-alpha'), async () => {
    $('calibrate-result').replaceChildren()
    const target = +$('cal-target').value
    if (!target) throw new Error('By how much? Write a change in SD, above or below zero.')
    const body = { feature_idx: S.j, measure: $('cal-measure').value, target, ...where() }
    const steps = gate()
    if (steps) body.steps = steps
    const { run_id } = await ask('calibrate', body)
    const r = await follow(run_id, $('calibrate-job'))
    if (!r) return
    moved(Number(r.alpha.toPrecision(3)))
    $('calibrate-result').replaceChildren(...calibrated(r))
  })
}

function calibrated(r) {
  const o = r.held_out, most = Math.max(...r.evaluations.map(e => Math.abs(e.effect)), Math.abs(r.target)) || 1
  const sides = r.side_effects.filter(x => x.lo > 0 || x.hi < 0).map(inPercent)
  const within = x => `${num(x.lo, 2)} to ${num(x.hi, 2)}`
  const side = x => `${readable(x.measure)} ${signed(x.difference, 2)} ${x.unit} (${within(x)})`
  const fells = r.too_much ? ' Too much: under it so many more fall that gait says little.' : ''
  const missed = (o.beyond_placebo === false ? ' Not beyond random directions of that length.' : '') + fells
  const track = e => [fill(e.effect / most), mark((r.target / most + 1) / 2)]
  const tried = r.evaluations.sort((a, b) => a.alpha - b.alpha).map(e =>
    row(`α ${signed(e.alpha, 2)}`, track(e), e.n < 2 ? 'falls' : signed(e.effect, 2), e.alpha === r.alpha && 'chosen'))
  return [
    h('p.answer', `α = ${signed(r.alpha)} moves ${readable(r.measure)} by ${signed(o.effect, 2)} SD `
      + `in ${o.n} fresh walks (95 %: ${within(o)}); ${signed(r.target)} was wanted.${missed}`),
    ...tried, h('p.note', `Effect of each α that was tried, in SD over ${r.steps} steps; the line is the target.`),
    h('p', `Side effects: ${sides.map(side).join('; ') || 'none whose interval leaves zero out'}.`)]
}

$('find-latents-form').onsubmit = e => {
  e.preventDefault()
  attempt('apply-error', $('find-latents'), async () => {
    $('search-result').replaceChildren()
    const measure = $('search-measure').value
    const { run_id } = await ask('search', { ...(measure ? { measure } : {}), ...where() })
    const r = await follow(run_id, $('search-job'))
    if (r) $('search-result').replaceChildren(...searched(r))
  })
}

function searched(r) {
  const n = new Set(r.found.map(f => f.feature_idx)).size
  const title = n ? `${plural(n, 'latent')} move${n === 1 ? 's' : ''} a measure both ways, beyond the placebo`
    : 'No latent moves a measure both ways beyond the placebo'
  const pairs = `${r.tried} pairs of latent and measure`
  const real = 'These effects are real; that they are latents is no reason yet: the last column is the share of random directions '
    + 'of which less is expected.'
  const sure = r.walked.filter(f => f.both && f.q <= .05 && f.too_much?.length)
  const felled = new Set(sure.map(f => f.feature_idx).filter(j => !r.found.some(f => f.feature_idx === j))).size
  const fells = felled ? `${plural(felled, 'other')} did, too, but felled too many walkers. ` : ''
  const note = h('p.note', `${pairs}; judged on ${r.n} fresh seeds; q is the false discovery rate. ${fells}${n ? real : ''}`)
  const take = f => async () => { await choose(f.feature_idx, true); moved(Number(f.alpha.toPrecision(2))) }
  const button = f => h('button.chip', { type: 'button', 'data-testid': `take-${f.feature_idx}`, onclick: take(f) },
    `Take ${f.feature_idx}`)
  const cell = x => h('td', signed(x.difference, 2), h('small', `${num(x.lo, 2)} to ${num(x.hi, 2)}`),
    x.fell > 0 && h('small', `${percent(x.fell)} fell`))
  const rows = r.found.map(f => h('tr', h('td', button(f)), h('td', readable(f.measure), h('small', f.unit)),
    h('td', signed(f.alpha, 2)), [f.minus, f.plus, f.placebo].map(cell), h('td', num(f.q, 1)),
    h('td', percent(f.stronger_than))))
  const head = ['Latent', 'Measure', 'α', '−α', '+α', 'placebo', 'q', 'above random'].map(x => h('th', { scope: 'col' }, x))
  const table = h('table', h('thead', h('tr', head)), h('tbody', rows))
  const box = h('div.scroll', { tabindex: 0, role: 'region', 'aria-label': title }, table)
  return [h('p.answer', title), note, n ? box : '']
}

// ---------------------------------------------------------------- the answer of a run

const ARMS = { minus: '−α', baseline: 'baseline', plus: '+α', placebo: 'placebo', edited: 'edited' }
const CAPTION = { baseline: 'as it is', placebo: 'a random direction, as long', edited: 'with your weights' }
const named = arm => arm === 'edited' ? 'the edited policy' : ARMS[arm] ?? arm
const armsIn = has => Object.keys(ARMS).filter(has)

const WORDS = { // measure -> what a walk with more or less of it does
  speed: ['walks', 'faster', 'slower'], steps: ['walks', 'longer', 'shorter'], return: ['earns', 'more', 'less'],
  effort: ['spends', 'more torque', 'less torque'], fell: ['falls in', 'more walks', 'fewer walks'],
  flight: ['is in the air', 'more', 'less'], both_feet: ['has both feet down', 'more', 'less'],
}

function phrase({ arm, measure, unit, difference: d }) {
  const [does, more, less] = WORDS[measure] ?? ['has', ...['higher', 'lower'].map(way => `${way} ${readable(measure)}`)]
  return `${named(arm)} ${does} ${num(Math.abs(d), 2)} ${unit[0] === '%' ? 'points' : unit} ${d > 0 ? more : less}`
}

const pushed = r => !['baseline', 'placebo'].includes(r.arm) && r.difference != null
const clear = r => r.difference_lo > 0 || r.difference_hi < 0
const strong = r => pushed(r) && (r.arm === 'edited' ? clear(r) : r.beyond_placebo)

function answer(rows) { // of one measure, from its arms
  const [{ measure, unit, n, mean }] = rows, name = capital(readable(measure))
  const said = list => `${capital(list.map(phrase).join(', '))} than baseline`
  const found = rows.filter(strong), weak = rows.filter(r => pushed(r) && clear(r))
  const beyond = found.some(r => r.beyond_placebo) ? `, ${found.length > 1 ? 'both ' : ''}beyond the placebo` : ''
  if (!rows.some(pushed)) return `${name}: ${num(mean)} ${unit}`
  if (n < 2) return `${name}: ${S.seeds > 1 ? 'the walks end too early to say' : 'a single seed has no interval'}`
  if (found.length) return said(found) + beyond
  return weak.length ? `${said(weak)}, but not beyond the placebo` : `${name}: no clear difference`
}

function headline(measures, tooMuch) {
  const fell = measures.find(rows => rows[0].measure === 'fell') ?? []
  const often = r => `${named(r.arm)} falls in ${num(r.mean, 2)} % of the walks`
  const down = fell.filter(r => tooMuch.includes(r.arm)), rest = fell.filter(r => !down.includes(r))
  const others = rest.map(r => `${named(r.arm)} in ${num(r.mean, 2)} %`)
  if (down.length) return `Too much: ${[...down.map(often), ...others].join(', ')}`
  const weight = r => Math.abs(r.difference) / (r.difference_hi - r.difference_lo || 1)
  const weighs = rows => Math.max(0, ...rows.filter(strong).map(weight)) * rows.filter(strong).length
  const [first] = [...measures].sort((a, b) => weighs(b) - weighs(a)), n = S.seeds
  if (weighs(first)) return answer(first)
  if (!first.some(pushed)) return `The policy as it is, in ${plural(n, 'walk')}`
  if (n < 2) return 'A single seed has no interval: run more of them'
  if (measures.flat().some(r => pushed(r) && clear(r))) return 'It differs from baseline, but no more than a random direction does'
  return `No clear difference from baseline in ${n} seeds`
}

function appliedLine({ applied, env_id, seeds, edited_steps }) {
  const p = applied?.sae, w = applied?.weights ?? [], parts = []
  if (p) parts.push(`latent ${p.feature_idx} at ${signed(p.alpha)} on tap ${p.tap_index}`)
  if (p?.steps) parts.push(`only in steps ${p.steps[0]} to ${p.steps[1] - 1}`)
  if (w.length) parts.push(`${plural(w.length, 'weight edit')}${p ? ' in every arm' : ''}`)
  const n = p && edited_steps ? Math.max(...Object.values(edited_steps)) : 0
  const had = parts.length ? `This run really had ${parts.join(', ')}` : 'This run had no edit at all'
  const where = `${env_id}, seed${seeds.length > 1 ? `s ${seeds[0]} to ${seeds.at(-1)}` : ` ${seeds[0]}`}`
  return `${had}${n ? `, applied in up to ${n.toLocaleString('en')} steps an arm` : ''}; ${where}.`
}

function inPercent(r) { // a share reads better so
  if (!r.unit.startsWith('share')) return r
  const shares = ['mean', 'lo', 'hi', 'difference', 'difference_lo', 'difference_hi'].filter(k => r[k] != null)
  return { ...r, unit: r.unit.replace('share', '%'), ...Object.fromEntries(shares.map(k => [k, 100 * r[k]])) }
}

function showResult(r, run_id) {
  const names = [...new Set(r.table.map(x => x.measure))]
  const measures = names.map(m => r.table.filter(x => x.measure === m).map(inPercent))
  S.measures = names
  S.seeds = r.seeds.length
  fillMeasures()
  $('result').hidden = false
  $('applied').textContent = appliedLine(r)
  $('result-title').textContent = headline(measures, r.too_much)
  showHints(r)
  films.open(r, run_id)
  $('measures').replaceChildren(...measures.filter(rows => rows.some(pushed)).map(measureBlock))
  showTable(r, measures)
  $('result').scrollIntoView({ block: 'start' })
}

function showHints(r) {
  const hints = [...r.notes, ...r.no_effect].map(x => h('p.warn', `${capital(x.words)}.`))
  const a = r.applied?.sae?.alpha, half = Number((a / 2).toPrecision(2))
  const again = () => { moved(half); $('run').click() }
  if (r.too_much.length && a) hints.push(h('p.warn', 'What fells a walker says little about how it walks.',
    h('button', { type: 'button', id: 'half-alpha', class: 'fix', onclick: again }, `Run again at α ${signed(half)}`)))
  $('hints').replaceChildren(...hints)
  const fell = r.filmed?.fell.map(a => named(a)).join(', ')
  $('filmed').textContent = r.filmed ? `Filmed is seed ${r.filmed.seed}, in which ${fell || 'no arm'} fell.` : ''
}

const films = { // all videos, one clock, and the charts that follow it
  async open(r, run_id) {
    this.pause()
    this.series = r.series ?? {}
    this.fps = r.fps
    const arms = armsIn(a => r.videos?.includes(a))
    const p = r.applied?.sae, yours = p && (p.alpha > 0 ? 'plus' : 'minus')
    const pushes = p ? { plus: Math.abs(p.alpha), minus: -Math.abs(p.alpha) } : {}
    const also = p && r.applied.weights?.length ? ', with your weights' : ''
    const plain = a => also && a === 'baseline' ? 'no push' : CAPTION[a]
    const words = a => (pushes[a] ? `latent ${p.feature_idx} at ${signed(pushes[a])}` : plain(a)) + also
    this.videos = arms.map(a => this.video(`/run/${run_id}/video/${a}.mp4`, a, words(a)))
    const film = (v, a) => h('figure', { class: `film ${a} ${a === yours ? 'yours' : ''}` }, v,
      h('figcaption', h('b', ARMS[a]), h('span', words(a))))
    $('video-error').replaceChildren()
    $('videos').replaceChildren(...arms.map((a, i) => film(this.videos[i], a)))
    $('videos').hidden = $('video-transport').hidden = !arms.length
    $('side-by-side').href = `/run/${run_id}/video/side_by_side.mp4`
    this.steps = Math.max(1, ...Object.values(this.series).flatMap(m => Object.values(m).map(x => x.length)))
    this.length = 0
    this.charts = showSeries(r)
    if (!still() && arms.length) this.play()
  },
  video(src, arm, words) {
    const named = { 'data-testid': `video-${arm}`, 'aria-label': `${ARMS[arm]}: ${words}` }
    const v = h('video', { src, playsinline: true, preload: 'auto', tabindex: -1, ...named })
    v.muted = true
    v.onerror = () => complain('video-error', 'No video: its run is gone, or this browser has no H.264. Run again.')
    v.onloadedmetadata = () => {
      this.length = Math.max(...this.videos.map(x => x.duration || 0))
      $('scrub').max = this.length
      this.tell()
    }
    return v
  },
  get time() { return this.videos?.[0]?.currentTime ?? 0 },
  get step() { return clamp(Math.round(this.time * this.fps), 0, this.steps - 1) },
  async play() {
    if (!this.videos?.length) return
    const mine = newest('play')
    this.playing = true
    this.show()
    if (this.length && this.time >= this.length - .05) this.seek(0)
    const loads = v => new Promise(done => { v.oncanplay = done; setTimeout(done, 4000) })
    await Promise.all(this.videos.map(v => v.readyState > 2 || v.error || loads(v)))
    if (!mine()) return
    this.videos.forEach(v => v.play().catch(() => {}))
    const frame = () => {
      if (!this.playing || !mine()) return
      const [first, ...others] = this.videos
      if (first.ended) { this.seek(0); this.videos.forEach(v => v.play().catch(() => {})) }
      const apart = v => !v.seeking && Math.abs(v.currentTime - first.currentTime) > .12
      for (const v of others.filter(apart)) v.currentTime = first.currentTime
      this.tell()
      requestAnimationFrame(frame)
    }
    frame()
  },
  pause() {
    newest('play')
    this.playing = false
    this.videos?.forEach(v => v.pause())
    this.show()
  },
  seek(t) { for (const v of this.videos) v.currentTime = t; this.tell(t) },
  show() {
    $('play').setAttribute('aria-pressed', !!this.playing)
    $('play').setAttribute('aria-label', this.playing ? 'Pause all videos' : 'Play all videos')
  },
  tell(t = this.time) {
    $('scrub').value = t
    $('time').textContent = `${t.toFixed(1)} s`
    for (const follow of this.charts ?? []) follow(this.step)
  },
}
$('play').onclick = () => films.playing ? films.pause() : films.play()
$('scrub').oninput = () => { films.pause(); films.seek(+$('scrub').value) }

function showSeries(r) { // one chart a measure; returns what moves their cursors
  const arms = armsIn(a => r.series?.[a]), measures = Object.keys(r.series?.[arms[0]] ?? {})
  const unit = m => r.table.find(x => x.measure === m)?.unit ?? ''
  $('series-box').hidden = !measures.length
  $('series-title').textContent = `Step by step, in seed ${r.filmed?.seed}`
  const made = measures.map(m => seriesChart(m, unit(m), arms.map(a => [a, r.series[a][m]])))
  $('series').replaceChildren(...made.map(([figure]) => figure))
  return made.map(([, follow]) => follow)
}

function seriesChart(measure, unit, lines) {
  const n = Math.max(2, ...lines.map(([, x]) => x.length)), all = lines.flatMap(([, x]) => x)
  const lo = Math.min(...all), hi = Math.max(...all), bars = is01(all), tall = 96 / lines.length
  const y = v => (96 - 92 * (v - lo) / (hi - lo || 1)).toFixed(1)
  const cursor = s('line', { y1: 0, y2: 100, class: 'cursor' })
  const bar = (a, i) => ([, x, end]) => s('rect', { x, width: end - x, y: 2 + i * tall, height: .8 * tall, class: a })
  const drawn = bars ? lines.flatMap(([a, x], i) => spans(x).filter(([on]) => on).map(bar(a, i)))
    : lines.map(([a, x]) => s('polyline', { points: x.map((v, i) => `${i},${y(v)}`).join(' '), class: a }))
  const average = x => bars ? percent(mean(x)) : num(mean(x), 2)
  const averages = lines.map(([a, x]) => `${ARMS[a]} ${average(x)}`)
  const now = lines.map(() => h('output'))
  const key = lines.map(([a], i) => h('span', { class: `arm-key ${a}` }, ARMS[a], now[i]))
  const chart = stretched('chart', n, 100, averages.join(', '), ...drawn, cursor)
  chart.onclick = e => { films.pause(); films.seek(e.offsetX / chart.clientWidth * n / films.fps) }
  const at = (x, step) => step >= x.length ? 'over' : bars ? ['no', 'yes'][x[step]] : num(x[step], 2)
  function follow(step) {
    for (const end of ['x1', 'x2']) cursor.setAttribute(end, step)
    lines.forEach(([, x], i) => { now[i].textContent = at(x, step) })
  }
  const ends = bars ? [] : [h('span.top', num(hi, 2)), h('span.bottom', num(lo, 2))]
  const own = averages.filter((_, i) => lines[i][0] !== 'placebo')
  const title = `${capital(readable(measure))}: ${own.join(', ')}${bars ? '' : ` ${unit}`}`
  return [h('figure', { 'data-testid': `series-${measure}` }, h('figcaption', title), h('div.keys', key),
    h('div.plot', chart, ends), h('p.axis', h('span', 'step 0'), h('span', n))), follow]
}

const ends = r => [r.difference, r.difference_lo, r.difference_hi]
const reachOf = rows => 1.08 * Math.max(1e-9, ...rows.flatMap(ends).map(x => Math.abs(x ?? 0)))
function rounder(reach) { // as many decimals for all numbers of a chart
  const places = reach < 1e-8 ? 0 : clamp(1 - Math.floor(Math.log10(reach)), 0, 5)
  return (x, plus = '') => {
    const text = x.toFixed(places)
    if (Math.abs(x) < 1e-6 * reach) return '0'
    return Number(text) ? minus((x > 0 ? plus : '') + text) : (x > 0 ? plus : '') + num(x, 1)
  }
}

function measureBlock(rows) {
  const others = rows.filter(r => r.difference != null), base = rows.find(r => r.arm === 'baseline')
  const reach = reachOf(others), fix = rounder(reach), at = x => (x / reach + 1) / 2
  const within = r => ` ${fix(r.difference_lo)} to ${fix(r.difference_hi)}`
  const lines = others.map(r => h('div', { class: `forest ${r.arm}` }, h('span', ARMS[r.arm] ?? r.arm),
    h('span.lane',
      r.difference_lo != null && h('i.interval', { '--from': at(r.difference_lo), '--to': at(r.difference_hi) }),
      h('i.dot', { '--at': at(r.difference) })),
    h('span', fix(r.difference, '+'), h('small', r.difference_lo == null ? '' : within(r)))))
  const [{ measure, unit, n }] = rows
  return h('figure', { class: rows.some(strong) ? 'measure strong' : 'measure', 'data-testid': `measure-${measure}` },
    h('figcaption', answer(rows)), lines, h('p.axis',
      [`${readable(measure)}, ${unit}`, `baseline ${num(base?.mean)}`, `n = ${n}`].map(x => h('span', x))))
}

function showTable(r, measures) {
  const arms = armsIn(a => r.table.some(x => x.arm === a))
  const th = (scope, text, cls) => h('th', { scope, class: cls }, text)
  const body = measures.map(rows => {
    const fix = rounder(reachOf(rows))
    const told = x => [num(x.mean), x.lo != null && h('small', `${num(x.lo)} to ${num(x.hi)}`),
      x.difference != null && h('small', `${fix(x.difference, '+')} from baseline${x.beyond_placebo ? ' *' : ''}`)]
    const cell = x => h('td', { class: x.beyond_placebo && 'strong' }, told(x))
    const cells = arms.map(a => cell(rows.find(x => x.arm === a)))
    return h('tr', h('th', { scope: 'row' }, readable(rows[0].measure), h('small', rows[0].unit)), cells)
  })
  const fewer = measures.map(([x]) => x).filter(x => x.n < r.seeds.length)
  const some = fewer.length ? `; of ${fewer[0].n} for gait, in the steps that all arms walk` : ''
  const caption = `Means of ${plural(r.seeds.length, 'walk')} an arm with 95 % intervals, the same seeds for all${some}`
  $('table').replaceChildren(h('caption', `${caption}${arms.includes('placebo') ? '; * is beyond the placebo' : ''}.`),
    h('thead', h('tr', th('col', 'Measure'), arms.map(a => th('col', ARMS[a], a)))), h('tbody', body))
}

// ---------------------------------------------------------------- the network

const net = {
  canvas: $('net'), chunk: 100, at: 0, steps: [],

  async open() {
    this.stop()
    Object.assign(this, { steps: [], at: 0, n: 0, weights: null, most: null })
    $('net-transport').hidden = true
    this.draw()
    await this.edges()
  },

  async edges() { // strongest weights into each unit
    const mine = newest('edges'), sizes = S.model.summary.layers.map(l => l.size)
    const many = sizes.slice(1).reduce((sum, n, i) => sum + n * sizes[i], 0)
    if (many > 60000) return
    const each = S.model.keys.length === sizes.length - 1 ? 1 : 2
    const keys = S.model.keys.filter((_, i) => i % each === 0)
    await attempt('network-error', null, async () => {
      const found = await Promise.all(keys.map(k => ask(`layer_weights/${encodeURIComponent(k)}`)))
      if (!mine()) return
      this.weights = found.map(({ values }) => {
        const most = Math.max(...values.map(row => Math.max(...row.map(Math.abs)))) || 1
        const sorted = row => row.map((w, i) => [w / most, i]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]))
        return values.map(row => sorted(row).slice(0, values.length < 12 ? 8 : 3))
      })
      this.draw()
    })
  },

  async load(step, plays = true) { // a chunk of the recorded walk
    const first = Math.floor(step / this.chunk) * this.chunk
    if (this.steps[first] || this.loading === first) return
    this.loading = first
    try {
      const got = await ask(`activations?from=${first}&to=${first + this.chunk}`)
      const list = got.steps ?? (Array.isArray(got) ? got : [got])
      this.n = got.n_steps ?? list[0]?.n_steps ?? list.length
      list.forEach((x, i) => { this.steps[first + i] = x })
      this.scale(list)
    } finally { this.loading = null }
    $('net-transport').hidden = this.n < 2
    $('net-scrub').max = this.n - 1
    if (plays && first === 0 && this.n > 1 && !this.playing && !still()) this.play()
  },

  scale(list) {
    this.most ??= list[0].layers.map((_, k) => { // what glows fully: one value in fifty is larger
      const all = list.flatMap(x => x.layers[k].map(Math.abs)).sort((a, b) => a - b)
      return all[Math.floor(.98 * all.length)] || 1
    })
    const tapped = tapLayer()
    if (S.typical || tapped == null) return
    const lengths = list.map(x => Math.hypot(...x.layers[tapped])).sort((a, b) => a - b)
    S.typical = lengths[Math.floor(lengths.length / 2)]
  },

  play() {
    this.playing = true
    this.show()
    let last = performance.now()
    const frame = now => {
      if (!this.playing) return
      const due = Math.floor((now - last) / 40) // 25 steps a second
      if (due > 0 && this.seen) { last += due * 40; this.go((this.at + Math.min(due, 3)) % this.n) }
      if (!this.seen) last = now
      requestAnimationFrame(frame)
    }
    requestAnimationFrame(frame)
  },
  stop() { this.playing = false; this.show() },
  show() {
    $('net-play').setAttribute('aria-pressed', !!this.playing)
    $('net-play').setAttribute('aria-label', this.playing ? 'Pause the recorded walk' : 'Play the recorded walk')
  },

  go(step) {
    if (this.steps[step]) {
      this.at = step
      $('net-scrub').value = step
      $('net-time').textContent = `step ${step} of ${this.n}`
      this.draw()
    }
    const ahead = (step + this.chunk / 2) % this.n
    const missing = [step, ahead].find(x => !this.steps[x])
    if (missing == null || this.loading != null) return
    const fails = e => { this.stop(); throw e } // once is enough
    attempt('network-error', null, () => this.load(missing).catch(fails))
  },

  place(w, hgt) { // a block of units for each layer
    const sizes = S.model.summary.layers.map(l => l.size)
    const names = S.targets?.action ?? [], right = names.length && names.length <= 12 ? (w > 560 ? 116 : 66) : 14
    const top = 30, bottom = 34, room = hgt - top - bottom
    let pitch = w > 560 ? 15 : 9, blocks, gap
    do {
      blocks = sizes.map(n => {
        const most = Math.max(4, Math.floor(room / pitch)), rows = n <= most ? n : Math.ceil(n / Math.ceil(n / most))
        const tall = n <= 12 ? Math.min(34, room / n) : Math.min(pitch, room / rows)
        return { n, rows, cols: Math.ceil(n / rows), tall, pitch }
      })
      gap = (w - right - 18 - blocks.reduce((sum, b) => sum + b.cols * pitch, 0)) / Math.max(1, sizes.length - 1)
      pitch *= .9
    } while (gap < (w > 560 ? 46 : 16) && pitch > 1.2)
    let x = 9
    for (const b of blocks) {
      const r = Math.max(.8, .36 * Math.min(b.pitch, b.tall))
      Object.assign(b, { x, y: top + (room - b.rows * b.tall) / 2, w: b.cols * b.pitch, r })
      x += b.w + gap
    }
    return blocks
  },
  centre: (b, i) => [b.x + (Math.floor(i / b.rows) + .5) * b.pitch, b.y + (i % b.rows + .5) * b.tall],

  draw() {
    const c = this.canvas
    if (!S.model || !c.clientWidth) return
    const ratio = devicePixelRatio || 1, w = c.clientWidth, hgt = c.clientHeight, now = this.steps[this.at]
    const size = [w, hgt].map(x => Math.round(x * ratio))
    if (c.width !== size[0] || c.height !== size[1]) [c.width, c.height] = size
    const g = c.getContext('2d')
    g.setTransform(ratio, 0, 0, ratio, 0, 0)
    g.clearRect(0, 0, w, hgt)
    const blocks = this.blocks = this.place(w, hgt)
    const value = (k, i) => now ? clamp(now.layers[k][i] / this.most[k], -1, 1) : 0
    this.drawEdges(g, blocks, value)
    this.drawTap(g, blocks, now)
    blocks.forEach((b, k) => this.drawUnits(g, b, k, value))
    this.drawNames(g, blocks, now, w)
    c.setAttribute('aria-label', `Network of ${S.model.summary.layers.map(l => l.size).join(', ')} units`
      + (now ? ` at step ${this.at} of a recorded walk` : '') + (S.sae ? `, tapped at ${S.sae.tap_index}` : ''))
  },

  drawEdges(g, blocks, value) {
    this.weights?.forEach((rows, k) => rows.forEach((edges, o) => edges.forEach(([weight, i]) => {
      const flow = weight * value(k, i), size = Math.sqrt(Math.abs(flow))
      const [a, b] = [this.centre(blocks[k], i), this.centre(blocks[k + 1], o)], mid = (a[0] + b[0]) / 2
      g.strokeStyle = size > .15 ? ink(flow > 0 ? 'plus' : 'minus') : ink('faint')
      g.globalAlpha = .14 + .4 * size
      g.lineWidth = .5 + .9 * size
      g.beginPath()
      g.moveTo(...a)
      g.bezierCurveTo(mid, a[1], mid, b[1], ...b)
      g.stroke()
    })))
    g.globalAlpha = 1
  },

  drawUnits(g, b, k, value) {
    for (let i = 0; i < b.n; i++) {
      const [x, y] = this.centre(b, i), v = value(k, i), size = Math.sqrt(Math.abs(v))
      if (size > .7) this.disc(g, x, y, b.r * 2, ink(v > 0 ? 'plus' : 'minus'), .2 * size)
      this.disc(g, x, y, b.r, ink('unit'), 1)
      if (size > .02) this.disc(g, x, y, b.r, ink(v > 0 ? 'plus' : 'minus'), size)
    }
    g.globalAlpha = 1
  },

  disc(g, x, y, r, colour, alpha) {
    g.globalAlpha = alpha
    g.fillStyle = colour
    g.beginPath()
    g.arc(x, y, r, 0, 7)
    g.fill()
  },

  drawTap(g, blocks, now) { // the tapped layer, the latent below it, and the units that it writes to
    const k = tapLayer(), b = blocks[k]
    if (!b) return
    g.strokeStyle = ink('accent')
    g.lineWidth = 1.5
    g.beginPath()
    g.roundRect(b.x - 5, b.y - 5, b.w + 10, b.rows * b.tall + 10, 7)
    g.stroke()
    if (S.j == null || S.mode === 'weights') return
    const x = b.x + b.w / 2, y = b.y + b.rows * b.tall + 17, on = now?.latents?.[S.j] ?? 0
    this.drawDirection(g, b)
    g.fillStyle = on > 0 ? ink('accent') : ink('card')
    g.beginPath()
    g.moveTo(x, y - 7); g.lineTo(x + 7, y); g.lineTo(x, y + 7); g.lineTo(x - 7, y); g.closePath()
    g.fill()
    g.stroke()
    g.fillStyle = ink('text')
    g.textAlign = 'right'
    g.font = '600 12px system-ui, sans-serif'
    g.fillText(`latent ${S.j}${S.alpha ? ` ${signed(S.alpha)}` : ''}`, x - 13, y + 4)
    g.textAlign = 'left'
    g.font = '12px system-ui, sans-serif'
    if (now) g.fillText(on ? num(on, 2) : 'silent', x + 13, y + 4)
  },

  drawDirection(g, b) {
    const d = S.card?.direction
    if (d?.length !== b.n) return
    const most = Math.max(...d.map(Math.abs)) || 1, push = S.alpha < 0 ? -1 : 1
    d.forEach((v, i) => {
      const size = Math.abs(v) / most, [x, y] = this.centre(b, i)
      if (size < .3) return
      g.strokeStyle = ink(v * push > 0 ? 'plus' : 'minus')
      g.globalAlpha = size
      g.lineWidth = 1.8
      g.beginPath()
      g.arc(x, y, b.r + 2.2, 0, 7)
      g.stroke()
    })
    g.globalAlpha = 1
    g.strokeStyle = ink('accent')
    g.lineWidth = 1.5
  },

  drawNames(g, blocks, now, w) {
    g.font = '12px system-ui, sans-serif'
    g.fillStyle = ink('soft')
    g.textBaseline = 'alphabetic'
    const last = blocks.length - 1, tapped = tapLayer(), wide = w > 560
    const unit = k => k === 0 ? (wide ? ' observations' : ' obs.') : k === last ? ' actions' : wide ? ' units' : ''
    const title = (n, k) => k !== tapped ? n + unit(k) : `${wide ? `${n} units, ` : ''}tap ${S.sae.tap_index}`
    blocks.forEach((b, k) => {
      const edge = k === 0 ? 'left' : k === last && !wide ? 'right' : 'center'
      g.textAlign = edge
      g.fillStyle = ink(k === tapped ? 'accent' : 'soft')
      g.fillText(title(b.n, k), { left: 2, right: w - 2, center: b.x + b.w / 2 }[edge], 14)
    })
    const b = blocks[last], names = S.targets?.action ?? []
    if (b.n > 12 || !names.length) return
    names.forEach((name, i) => {
      const [x, y] = this.centre(b, i), v = now ? now.action[i] : 0
      g.textAlign = 'left'
      g.fillStyle = ink('text')
      g.fillText(name, x + b.r + 8, y + 4)
      if (wide && now) {
        g.fillStyle = ink('soft')
        g.textAlign = 'right'
        g.fillText(minus(v.toFixed(2)), w - 6, y + 4)
      }
    })
  },

  tip(e) {
    const box = this.canvas.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top
    let near = null, gap = 14
    this.blocks?.forEach((b, k) => { for (let i = 0; i < b.n; i++) {
      const [cx, cy] = this.centre(b, i), d = Math.hypot(cx - x, cy - y)
      if (d < gap) { gap = d; near = { k, i, cx, cy } }
    } })
    $('net-tip').hidden = !near
    if (!near) return
    const { k, i } = near, last = this.blocks.length - 1, v = this.steps[this.at]?.layers[k][i]
    const names = { 0: S.targets?.observation, [last]: S.targets?.action }[k]
    const name = names?.[i] ?? `layer ${k}, unit ${i}`
    $('net-tip').textContent = v == null ? name : `${name}: ${num(v, 2)}`
    $('net-tip').style.left = `${clamp(near.cx, 60, box.width - 60)}px`
    $('net-tip').style.top = `${near.cy}px`
  },
}

function tapLayer() { // which drawn layer holds the tap: layers are drawn after their nonlinearity
  if (S.sae?.tap_index == null) return null
  return Math.min(Math.floor(S.sae.tap_index / 2) + 1, S.model.summary.layers.length - 1)
}

new IntersectionObserver(([e]) => { net.seen = e.isIntersecting }).observe($('net'))
new ResizeObserver(() => net.draw()).observe($('net'))
$('net').onpointermove = $('net').onpointerdown = e => net.tip(e)
$('net').onpointerleave = () => { $('net-tip').hidden = true }
$('net-play').onclick = () => net.playing ? net.stop() : net.play()
$('net-scrub').oninput = () => { net.stop(); net.go(+$('net-scrub').value) }

// ---------------------------------------------------------------- raw weights

const heat = {
  canvas: $('heat'),

  open() {
    options($('key'), S.model.keys.map(k => [k, k]))
    return this.load()
  },

  load() {
    const mine = newest('heat')
    return attempt('weights-error', null, async () => {
      const w = await ask(`layer_weights/${encodeURIComponent($('key').value)}`)
      if (!mine()) return
      this.rows = w.shape.length > 1 ? w.values : [w.values]
      this.shape = w.shape
      $('edit-j-label').hidden = w.shape.length < 2
      $('edit-i').max = w.shape[0] - 1
      $('edit-j').max = (w.shape[1] ?? 1) - 1
      this.draw()
      this.now()
    })
  },

  get index() { // where the form points, or null outside of the matrix
    const at = [+$('edit-i').value, +$('edit-j').value].slice(0, this.shape?.length ?? 0)
    return at.length && at.every((x, d) => Number.isInteger(x) && x >= 0 && x < this.shape[d]) ? at : null
  },

  cell(at) { return !at ? [] : this.shape.length > 1 ? at : [0, at[0]] }, // a bias is drawn as a row

  now() {
    const at = this.index
    const [i, j] = this.cell(at)
    $('edit-now').textContent = at ? num(this.rows[i][j], 4) : '–'
  },

  draw() {
    const c = this.canvas
    if (!this.rows || !c.clientWidth) return
    const [n, m] = [this.rows.length, this.rows[0].length]
    const most = this.rows.reduce((a, row) => row.reduce((b, x) => Math.max(b, Math.abs(x)), a), 0) || 1
    c.width = m
    c.height = n
    c.style.aspectRatio = `${m} / ${clamp(n, m / 16, m * .66)}`
    const g = c.getContext('2d'), image = g.createImageData(m, n)
    const [up, down] = ['plus', 'minus'].map(name => ink(name).match(/[\d.]+/g).map(Number))
    this.rows.forEach((row, i) => row.forEach((x, j) => {
      const colour = x > 0 ? up : down, at = 4 * (i * m + j)
      image.data.set([colour[0], colour[1], colour[2], Math.round(255 * Math.abs(x) / most)], at)
    }))
    g.putImageData(image, 0, 0)
    const at = this.index
    if (at) {
      const [i, j] = this.cell(at)
      g.fillStyle = ink('text')
      g.fillRect(j, i, 1, 1)
    }
    const [lo, hi] = this.rows.flat().reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity])
    const shape = this.shape.join(' × ') + (this.shape.length > 1 ? ', rows are outputs' : '')
    $('heat-note').textContent = `${shape}; ${num(lo)} to ${num(hi)}, blue above zero, orange below. Choose a cell.`
    const label = `Weights ${$('key').value}, ${this.shape.join(' by ')}; arrow keys move the chosen cell`
    c.setAttribute('aria-label', label)
  },

  choose(i, j) {
    if (this.shape.length < 2) [i, j] = [j, 0]
    $('edit-i').value = clamp(i, 0, this.shape[0] - 1)
    $('edit-j').value = clamp(j, 0, (this.shape[1] ?? 1) - 1)
    this.draw()
    this.now()
  },
}

$('key').onchange = () => heat.load()
$('heat').onclick = e => {
  const place = (at, size, n) => Math.floor(at / size * n), c = $('heat')
  heat.choose(place(e.offsetY, c.clientHeight, heat.rows.length), place(e.offsetX, c.clientWidth, heat.rows[0].length))
}
$('heat').onkeydown = e => {
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key]
  if (!way) return
  e.preventDefault()
  const [i, j] = heat.shape.length > 1 ? [+$('edit-i').value, +$('edit-j').value] : [0, +$('edit-i').value]
  heat.choose(i + way[0], j + way[1])
}
$('edit-i').oninput = $('edit-j').oninput = () => { heat.draw(); heat.now() }

async function edited(line) {
  $('edits-line').textContent = line
  const model = await api(`/model/${S.model.model_id}`)
  hush()
  setEdits(model.weight_edits)
  await heat.load()
  net.edges()
  await reread(model.sae)
}

$('edit-one').onsubmit = e => {
  e.preventDefault()
  attempt('weights-error', $('edit-apply'), async () => {
    const key = $('key').value, index = heat.index
    if (!index) throw new Error(`There is no such weight: ${key} is ${heat.shape.join(' × ')}, counted from 0.`)
    const r = await ask('edit_at', { key, index, op: $('edit-op').value, value: +$('edit-value').value })
    await edited(`${key}[${index.join(', ')}] was ${num(r.before, 4)}, is ${num(r.after, 4)}.`)
  })
}

$('edit-all').onsubmit = e => {
  e.preventDefault()
  attempt('weights-error', $('all-apply'), async () => {
    const op = $('all-op').value, key = $('key').value
    const r = await ask('perturb', { key, op, value: +$('all-value').value, seed: +$('all-seed').value })
    await edited(`${plural(r.changed, 'weight')} of ${key} changed.`)
  })
}

$('reset').onclick = () => attempt('weights-error', $('reset'), async () => {
  await ask('reset', {})
  await edited('Weights are as they were uploaded.')
})

function setEdits(edits = []) {
  S.edits = edits ?? []
  const words = e => `${e.key}${e.index ? `[${e.index.join(', ')}]` : ''}: ${readable(e.op)} ${num(e.value)}`
  const file = f => `/model/${S.model.model_id}/save?format=${f}`
  const link = f => h('a', { id: `download-${f}`, download: true, href: file(f) }, `.${f}`)
  const save = h('li', 'Download the policy: ', link('safetensors'), ' or ', link('pt'))
  $('edits-list').replaceChildren(...S.edits.slice(-6).map(e => h('li', words(e))), save)
  $('reset').hidden = !S.edits.length
  plan()
}

// ---------------------------------------------------------------- models

async function listModels() {
  await attempt('models-error', null, async () => {
    const { models } = await api('/models')
    const current = S.model?.model_id
    const when = m => new Date(1000 * m.created).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
    $('models-button').textContent = models.length ? `Models (${models.length})` : 'Models'
    $('models').replaceChildren(...models.map(m => h('li', { 'data-testid': `model-${m.model_id}` },
      h('span', m.name, h('small', ` ${when(m)}${m.model_id === current ? ', open' : ''}`)),
      m.model_id === current ? null : h('button', { type: 'button', onclick: () => revisit(m.model_id) }, 'Open'),
      h('a', { href: `/model/${m.model_id}/save?format=safetensors`, download: true, class: 'button' }, 'Download'),
      h('button', { type: 'button', onclick: e => forget(m.model_id, e.currentTarget) }, 'Delete'))))
    if (!models.length) $('models').replaceChildren(h('li.note', 'None yet.'))
  })
}

function revisit(id) {
  return attempt('models-error', null, async () => {
    const model = await api(`/model/${id}`)
    $('models-menu').open = false
    await open(model)
  })
}

function forget(id, button) {
  return attempt('models-error', button, async () => {
    await api(`/model/${id}`, undefined, 'DELETE')
    if (S.model?.model_id === id) start()
    await listModels()
  })
}
$('models-menu').ontoggle = () => $('models-menu').open && listModels()

// ---------------------------------------------------------------- keys, and the beginning

addEventListener('keydown', e => {
  if (e.key === 'Escape') $('models-menu').open = false
  if (e.key !== ' ' || e.target.closest?.('button, input, select, textarea, a, summary, canvas')) return
  e.preventDefault()
  if (S.model) (!$('result').hidden && films.videos?.length ? $('play') : $('net-play')).click()
})
addEventListener('click', e => { if (!e.target.closest('#models-menu')) $('models-menu').open = false })

let remembered
try { remembered = localStorage.getItem('theme') } catch { /* private window */ }
setTheme(remembered)
listModels()
const kept = encodeURIComponent(location.hash.slice(1)) // a model's address
if (kept) attempt('start-error', null, async () => open(await api(`/model/${kept}`)))
