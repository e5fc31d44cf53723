"The page of the benchmarks, made from nothing but `benchmarks/results/`"
import json, re
from textwrap import wrap
from cells import figure, fold

RATE = re.compile(r'/s$|^(bits|share)$') # of these more is better, of all else less
# What the page opens with: the table, words of the row's name, words of the peer's name, what it is called there
LEADING = [
    ('acts', 'harvest, layer 6', 'sae-lens', 'Harvest one layer of GPT-2'),
    ('acts', 'write', 'sae-lens', 'Write activations'),
    ('acts', 'read shuffled, 256 MB for 2,304 MB', 'sae-lens.*fastest', 'Read shuffled, a ninth in memory'),
    ('acts', 'read shuffled, 256 MB.*later epochs', 'numpy', 'The same, after the first epoch'),
    ('sae_train', '768.*2,000 updates.*dead\\), bf16$', 'sae-lens.*bf16', 'Train TopK, 768 to 24,576'),
    ('sae_train', '768.*2,000 updates.*dead\\), bf16$', 'eai-sparsify', 'Train TopK, 768 to 24,576'),
    ('sae_train', '768.*2,000 updates.*dead\\), float32$', 'sae-lens', 'Train TopK in float32, the same'),
    ('sae_train', 'memory, 768.*bf16', 'sae-lens', 'Memory of training, the same'),
    ('rollout', 'control step, puck', 'metaworld', 'A control step of the puck scene'),
    ('rollout', 'trials.*, two processes', '', 'Steered trials on two cores'),
]


def num(x): return f'{x:,.0f}' if x>=1000 else f'{x:.3g}'


def better(r):
    "How many times as good as its peer ours is"
    return r['ratio'] if RATE.search(r['unit']) else 1/r['ratio']


def line(xs): return '| '+' | '.join(map(str, xs))+' |'


def leading(tables):
    "The rows of `LEADING` that were measured: [(name, row)]"
    for stem,name,peer,label in LEADING:
        rows = [r for t in tables if t['stem']==stem for r in t['rows']]
        found = [r for r in rows if re.search(name, r['name']) and re.search(peer, r['peer_name'])]
        if found: yield label, found[0]


def who(r):
    "A peer in a few words"
    return re.sub(r' (SAETrainer|CacheActivationsRunner)[\w.]*', '', r['peer_name'].split(',')[0])


def plot(rows):
    "One dot a row on a log axis, ours at 1"
    from steerlens.plot import HUES, sheet
    ratios = [better(r) for _,r in rows]
    won = sum(x>1 for x in ratios)
    ends = f'{num(max(ratios))} times as good at best, {num(min(ratios))} at worst'
    title = f'Ours is ahead of its peer in {won} of {len(rows)}: {ends}'
    fig,(ax,) = sheet(title, .8+.36*len(rows))
    ax.set_xscale('log')
    for y,x in enumerate(ratios):
        color = HUES['blue' if x>1 else 'orange']
        ax.plot([1, x], [y, y], color=color, lw=1.6)
        ax.plot(x, y, 'o', color=color, ms=6)
        ahead = x>1
        ax.text(x*(1.12 if ahead else .9), y, f'{num(x)}×', va='center', ha='left' if ahead else 'right', fontsize=9)
    ax.axvline(1, color='#888', lw=1)
    ax.grid(False)
    ax.set(yticks=range(len(rows)), yticklabels=[f'{label}\nbeside {who(r)}' for label,r in rows])
    ax.tick_params(axis='y', labelsize=8.5)
    ticks = [.5, 1, 2, 5, 10, 20]
    ax.set(ylim=(len(rows)-.5, -.6), xlim=(min(.5, *ratios)*.7, max(ratios)*1.5), xticks=ticks)
    ax.set_xticklabels([f'{t:g}×' for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel('ours beside the peer, log scale: right of 1 is faster, or smaller')
    return fig


def named(name, r):
    "The first cell of a row: what was done, and beside whom"
    return f'{name}<small class="peer">beside {r["peer_name"]}</small>'


def short_table(rows):
    "The leading rows with their numbers"
    lines = [line(['', 'times as good', 'ours', 'peer', 'unit']), line(['---', '--:', '--:', '--:', '---'])]
    for name,r in rows:
        lines.append(line([named(name, r), f'**{num(better(r))}**', num(r['ours']), num(r['peer']), r['unit']]))
    return '\n'.join(lines)


def row(r):
    "A row of a whole table"
    name = named('<br>'.join(wrap(r['name'], 44)), r)
    memory = num(round(r['memory_mb'])) if r['memory_mb'] else ''
    return line([name, num(r['ours']), num(r['peer']), r['unit'], f"**{r['ratio']:.2f}**", memory])


def whole(t):
    "All rows of a benchmark, folded"
    ran = ', '.join(f'{k} {v}' for k,v in t['machine'].items() if k!='quick')
    head = [line(['', 'ours', 'peer', 'unit', 'ours / peer', 'MB']), line(['---', '--:', '--:', '---', '--:', '--:'])]
    table = '\n'.join(head+[row(r) for r in t['rows']])
    script,quick,_ = t['stem'].partition('_quick') # a table of its own: fewer repetitions
    about = f"{t['about']}\n\n`benchmarks/{script}.py{' --quick' if quick else ''}` on {ran}."
    return f"### {t['title']}\n\n"+about+'\n\n'+fold(f"All {len(t['rows'])} rows", table)


def benchmarks(root, folder, header):
    "The page [(name, title, text)]: a figure, at most ten rows, and all the rest folded; no page without results"
    results = sorted((root/'benchmarks/results').glob('*.json'))
    tables = [json.loads(p.read_text()) | dict(stem=p.stem) for p in results]
    if not tables: return []
    parts = [header('Benchmarks', 'Ours beside a peer, on the same work in the same run')]
    if rows := list(leading(tables)):
        from steerlens.plot import save
        fig = plot(rows)
        save(fig, folder/'benchmarks.svg')
        parts += [figure('benchmarks.svg', fig.title), short_table(rows)]
    parts += ['Machines are noisy, so read the ratios. `make bench` makes these tables anew.', '## All rows']
    parts.append('Where the unit is a rate, more is better; where it is seconds or MB, less is.')
    return [('benchmarks', 'Benchmarks', '\n\n'.join([*parts, *map(whole, tables)]))]
