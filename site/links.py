"Links between the pages, made and checked"
import ast, re
from collections import Counter
from html import unescape

FENCE = re.compile(r'^(```.*?^```)$', re.M|re.S)
LINK = r'!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\([^()\s]*\)'
WORD = re.compile(rf'{LINK}|<[^<>]+>|^#+ .*$|``.+?``|`([A-Za-z_][\w.]*)(?:\(\))?`', re.M)
EXPORTED = re.compile(r'^__all__ = \[.*?\]', re.M|re.S)

# -- names

def anchor(name): return name.lower().replace('__', '')


def meanings(tree):
    "The words that code uses for an argument, a variable, a field or a key"
    for n in ast.walk(tree):
        if isinstance(n, ast.arg): yield n.arg
        elif isinstance(n, ast.keyword) and n.arg: yield n.arg
        elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): yield n.id
        elif isinstance(n, ast.Constant) and isinstance(n.value, str): yield n.value


def unambiguous(anchors, sources):
    "{name: (page, anchor)} of the names defined on one page that mean nothing else in any of the `sources`"
    pages = Counter(name for names in anchors.values() for name in names)
    taken = set()
    for text in sources: taken |= set(meanings(ast.parse(EXPORTED.sub('', text))))
    return {name: (page, anchor(name)) for page,names in anchors.items() for name in names
            if pages[name]==1 and name not in taken}


def outside_code(text, change):
    "`text` with `change` applied to what is no fenced code"
    return ''.join(part if FENCE.match(part) else change(part) for part in FENCE.split(text))


def link_names(text, page, where):
    "Each `name` of `where` in the prose of `page` becomes a link, unless it is in a link or a heading already"
    def linked(m):
        if m[1] not in where: return m[0]
        to,at = where[m[1]]
        return f'[{m[0]}]({"" if to==page else to+".md"}#{at})'
    return outside_code(text, lambda part: WORD.sub(linked, part))

# -- pages

def local(text, host, anchors, stems):
    "nbdev's absolute links and those to notebooks point to pages here; dead anchors are dropped"
    ids = {page: {anchor(name) for name in names} for page,names in anchors.items()}
    def absolute(m):
        page,at = m[1], m[2]
        if page not in ids: return m[0]
        return f'({page}.md#{at})' if at in ids[page] else f'({page}.md)'
    def notebook(m):
        return f'({stems[m[1]]}.md{m[2] or ""})' if stems.get(m[1]) in ids else m[0]
    text = re.sub(rf'\({re.escape(host)}([\w.]+)\.html(?:#([^)\s]*))?\)', absolute, text)
    text = re.sub(r'\((?:\.\./)?(?:nbs/|sae_notebooks/)?([\w.]+)\.ipynb(#[^)\s]*)?\)', notebook, text)
    return text.replace('../reports/showcase/', 'showcase/')


def resolve(pages, host, stems, sources):
    "The pages [(page, title, text)] with all their links"
    anchors = {page: re.findall(r'^### `([\w.]+)` \{ #\S+ \.api', text, re.M) for page,_,text in pages}
    where = unambiguous(anchors, sources)
    for page,title,text in pages:
        yield page, title, link_names(local(text, host, anchors, stems), page, where)

# -- the check

QUOTED = re.compile(r'<!--.*?-->|<(pre|script|style|svg)\b.*?</\1>', re.S)
INLINE = re.compile(r'<code\b.*?</code>', re.S)
TAG = re.compile(r'<[^>]*>')
LEFT = {'a link': r'\]\([^)\s]*\)',
        'bold': r'\*\*\w[^*]*\*\*',
        'code': '`',
        'a heading': r'^\s*#{1,6} ',
        'a table': r'^\s*\|.*\|\s*$',
        'attributes': r'\{ ?[.#:][\w-]',
        'a block': r'^\s*(///|:::)'}


def leftovers(page):
    "Markdown that is still to be seen in the HTML `page`: [(what, the text around it)]"
    page = re.sub(r'<article class="card">.*?</article>', '', page, flags=re.S) # a card quotes what it is about,
    page = re.sub(r'<table[^>]* class="dataframe".*?</table>', '', page, flags=re.S) # and so does a table of data
    body = re.search(r'<article\b.*?</article>', page, re.S)
    shown = QUOTED.sub('', body[0] if body else page)
    prose = unescape(TAG.sub('', INLINE.sub('', shown)))
    found = []
    for what,pattern in LEFT.items():
        text = unescape(TAG.sub('', shown)) if what=='a link' else prose
        for m in re.finditer(pattern, text, re.M):
            found.append((what, ' '.join(text[max(0, m.start()-40):m.end()+20].split())))
    return found


def loaded(page):
    "What the HTML `page` loads as it opens: images, films, scripts and styles"
    tags = re.findall(r'<(?:img|video|script|source|iframe)\b[^>]*?\ssrc="([^"]+)"', page)
    tags += re.findall(r'<link\b[^>]*?rel="(?:stylesheet|icon)"[^>]*?href="([^"]+)"', page)
    return [unescape(t).split('?')[0] for t in tags if not t.startswith('data:')]
