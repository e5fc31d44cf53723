"Notebook cells as markdown"
import base64, re
from html import escape

DIRECTIVE = re.compile(r'^#\|.*\n?', re.M)
HIDDEN = re.compile(r'^#\| *(hide|export|exporti|exports|default_exp|include: *false)\b', re.M)
SILENT = re.compile(r'^#\| *echo: *false', re.M)
CALLOUT = re.compile(r'^::: *\{\.callout-(\w+)[^}]*\}\n(.*?)\n:::$', re.M|re.S)
VIDEO = re.compile(r'^\[([^\]]*)\]\(([^)]+\.mp4)\)$', re.M)
POSTER = re.compile(r'^\[!\[([^\]]*)\]\(([^)]+\.png)\)\]\(([^)]+\.mp4)\)$', re.M)
FIGURE = re.compile(r'^!\[([^\]]*)\]\(([^)]+\.svg)\)$', re.M)
JOINT = re.compile(r'_|(?<=[A-Za-z])\.') # in a name, not in a number
STYLE = re.compile(r'<style.*?</style>', re.S)


def figure(name, alt=''):
    return f'<div class="figure" tabindex="0"><img src="{name}" alt="{escape(alt, quote=True)}" loading="lazy"></div>'


def video(name, alt='', poster=''):
    poster = poster and f' poster="{poster}"'
    return f'<video controls loop muted playsinline preload="metadata" src="{name}"{poster} aria-label="{alt}"></video>'


def fence(text): return '```{.text .out}\n'+text.rstrip()+'\n```'
def python(text): return f'```python\n{text}\n```'


def fold(summary, md, cls=''):
    "`md` behind a line that opens it"
    return f'<details class="{cls}" markdown>\n<summary>{summary}</summary>\n\n{md}\n\n</details>'


def markdown(text):
    "A markdown cell: callouts become admonitions, figures may scroll, a lone link to an mp4 plays"
    text = CALLOUT.sub(lambda m: f'/// {m[1]}\n{m[2]}\n///', text)
    text = POSTER.sub(lambda m: video(m[3], m[1], m[2]), text)
    text = VIDEO.sub(lambda m: video(m[2], m[1]), text)
    return FIGURE.sub(lambda m: figure(m[2], m[1]), text)


def image(data, name, folder):
    "An SVG or PNG as a file in `folder`, shown under its title"
    svg = 'image/svg+xml' in data
    f = folder/f"{name}.{'svg' if svg else 'png'}"
    f.write_bytes(data['image/svg+xml'].encode() if svg else base64.b64decode(data['image/png']))
    return figure(f.name, data.get('text/plain', '').strip() if svg else '')


def html(text):
    "A table of pandas, or other HTML: without its style, in one block as markdown wants it; names may wrap"
    if 'class="slc"' in text: return re.sub(r'\n\s*\n', '\n', text) # a card brings its own look
    text = re.sub(r'\n\s*\n', '\n', STYLE.sub('', text)).strip()
    text = re.sub(r'(?<=>)[^<>]+(?=</t[hd]>)', lambda m: JOINT.sub(r'\g<0><wbr>', m[0]), text)
    return f'<div class="table" tabindex="0">{text}</div>'


def output(o, name, folder):
    "The richest form of the output `o` as markdown; images become files in `folder`"
    if o.output_type=='stream': return fence(''.join(o.text))
    data = {k: v if isinstance(v, str) else ''.join(v) for k,v in (o.get('data') or {}).items()}
    if 'image/svg+xml' in data or 'image/png' in data: return image(data, name, folder)
    if 'text/markdown' in data: return markdown(data['text/markdown'])
    if 'text/html' in data: return html(data['text/html'])
    return fence(data['text/plain']) if 'text/plain' in data else ''


def merged(found):
    "`found` outputs without what went to standard error, neighbouring prints as one"
    res = []
    for o in found:
        if o.output_type=='stream' and o.name=='stderr': continue
        if res and o.output_type==res[-1].output_type=='stream': res[-1].text = ''.join(res[-1].text)+''.join(o.text)
        else: res.append(o)
    return res


def outputs(c, name, folder):
    "All outputs of a cell"
    return [output(o, f'{name}_{j}', folder) for j,o in enumerate(merged(c.get('outputs') or []))]


def source(c):
    "The code of a cell, or '' if it isn't to be seen"
    return '' if SILENT.search(c.source) else DIRECTIVE.sub('', c.source).strip()


def cell(c, name, folder):
    "A cell as it stands: code, then what it gave"
    if c.cell_type!='code': return markdown(c.source)
    code = source(c)
    return '\n\n'.join(filter(None, [code and python(code), *outputs(c, name, folder)]))
