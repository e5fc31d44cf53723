"How a definition looks in the docs: its signature as Python writes it, its docstring, its documented arguments"
import ast, inspect, re
from dataclasses import is_dataclass
from functools import reduce
from importlib import import_module
from itertools import groupby
from textwrap import dedent
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.process import Processor
from links import anchor

WIDTH = 88 # characters of a signature's line
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

# -- what the source says

def plain(sym):
    "The function under a property, a partial method or a decorator"
    for a in ('fget', 'func', '__func__'): sym = getattr(sym, a, None) or sym
    return inspect.unwrap(sym)


def node(sym):
    "The syntax tree of the definition of `sym`, or None"
    try: return ast.parse(dedent(inspect.getsource(sym))).body[0]
    except (OSError, TypeError, SyntaxError): return None


def declared(name, annotation, default):
    "One argument or field, such as `k: int = 32`"
    kind = f': {ast.unparse(annotation)}' if annotation else ''
    if not default: return name+kind
    return name+kind+(' = ' if annotation else '=')+ast.unparse(default)


def arguments(fn):
    "{name: as Python writes it} of the arguments of the function node `fn`; a lone `*` and `/` are named so"
    a = fn.args
    positional = a.posonlyargs+a.args
    defaults = [None]*(len(positional)-len(a.defaults))+a.defaults
    res = {}
    for i,(o,d) in enumerate(zip(positional, defaults)):
        if o.arg not in ('self', 'cls'): res[o.arg] = declared(o.arg, o.annotation, d)
        if i+1==len(a.posonlyargs): res['/'] = '/'
    if a.vararg: res[a.vararg.arg] = declared('*'+a.vararg.arg, a.vararg.annotation, None)
    elif a.kwonlyargs: res['*'] = '*'
    for o,d in zip(a.kwonlyargs, a.kw_defaults): res[o.arg] = declared(o.arg, o.annotation, d)
    if a.kwarg: res[a.kwarg.arg] = declared('**'+a.kwarg.arg, a.kwarg.annotation, None)
    return res


def fields(nd):
    "{name: as Python writes it} of the annotated fields of the class node `nd`"
    return {o.target.id: declared(o.target.id, o.annotation, o.value) for o in nd.body if isinstance(o, ast.AnnAssign)}


def comments(sym):
    "{argument: its docment}"
    try: found = docments(sym, args_kwargs=True)
    except Exception: return {} # an inherited or generated __init__ has no source to read
    return {k: ' '.join(v.split()) for k,v in found.items() if v}

# -- what the page shows

def signature(head, args, returns=''):
    "`head(args)` on one line if that fits, else one argument a line"
    line = f"{head}({', '.join(args)}){returns}"
    if len(line)<=WIDTH: return line
    return '\n'.join([f'{head}(', *(f'    {a},' for a in args), f'){returns}'])


def function_md(name, fn, docs):
    "Signature and rows of a function node"
    args = arguments(fn)
    returns = f' -> {ast.unparse(fn.returns)}' if fn.returns else ''
    rows = {k: docs.get(k) for k in args} | {'returns': docs.get('return')}
    return signature(f"def {name.split('.')[-1]}", args.values(), returns), rows


def class_md(sym, nd):
    "Signature and rows of a class node: arguments or fields, then the methods of its body"
    own = {o.name: o for o in nd.body if isinstance(o, FUNCTION)}
    made = own.get('__init__')
    args = arguments(made) if made else fields(nd)
    docs = comments(sym) if made or is_dataclass(sym) else {}
    rows = {k: docs.get(k) for k in args}
    for k,o in own.items():
        if not k.startswith('_'): rows[f".{k}({', '.join(arguments(o))})"] = (ast.get_docstring(o) or '').split('\n')[0]
    return signature(f'class {nd.name}', args.values() or map(ast.unparse, nd.bases)), rows


def table(rows):
    "The documented ones of `rows` as a table"
    lines = [f'| `{k}` | {v} |'.replace('| `returns` |', '| *returns* |') for k,v in rows.items() if v]
    if not lines: return ''
    return '\n'.join(['<div class="api" markdown>\n', '| | |', '|---|---|', *lines, '\n</div>'])


def api_md(sym, name):
    "The definition `sym` as markdown"
    sym = plain(sym)
    nd = node(sym)
    head,rows = '', {}
    if isinstance(nd, ast.ClassDef): head,rows = class_md(sym, nd)
    if isinstance(nd, FUNCTION): head,rows = function_md(name, nd, comments(sym))
    title = f'### `{name}` {{ #{anchor(name)} .api }}'
    code = head and '```{.python .signature}\n'+head+'\n```'
    doc = inspect.cleandoc(getattr(sym, '__doc__', '') or '')
    return '\n\n'.join(filter(None, [title, code, doc, table(rows)]))

# -- in nbdev's chain

def constants(cell):
    "Does an exported cell only assign public names? Such a cell is shown as it is"
    tree = cell.parsed_() or []
    assigns = all(isinstance(o, (ast.Assign, ast.AnnAssign)) for o in tree)
    return bool(tree) and assigns and not ast.unparse(tree[0]).startswith('_')


class ShowDocs(Processor):
    "In nbdev's place: fill the `show_doc` cells from the exported module without running the notebook"
    def begin(self):
        page = re.search(r'^output-file: *(\S+)\.html', self.nb.cells[0].source, re.M)
        self.mod = page and f"{get_config().lib_name}.{page[1]}"
        self.forwards()

    def forwards(self):
        "nbdev puts the definitions of one cell in reverse"
        for is_doc,run in groupby(list(enumerate(self.nb.cells)), lambda o: getattr(o[1], 'has_sd', False)):
            if not is_doc: continue
            ids,cells = zip(*run)
            for i,c in zip(ids, reversed(cells)): self.nb.cells[i] = c

    def cell(self, cell):
        directives = set(cell.directives_ or {})
        hidden = directives & {'hide', 'exporti', 'default_exp'}
        if hidden or 'export' in directives and not constants(cell):
            del cell['source']
            return
        shown = re.search(r'^show_doc\(([\w.]+)\)', cell.source, re.M) if cell.cell_type=='code' else None
        if not shown: return
        sym = reduce(getattr, shown[1].split('.'), import_module(self.mod))
        md = api_md(sym, shown[1])
        cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': md})]
