"How one definition looks in the docs: its signature as the heading, its docstring, and a row for each argument"
import ast, inspect, re
from dataclasses import is_dataclass
from functools import reduce
from importlib import import_module
from itertools import groupby
from textwrap import dedent
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor

def plain(sym):
    "The function under a property, a partial method or a decorator"
    for a in ('fget', 'func', '__func__'): sym = getattr(sym, a, None) or sym
    return inspect.unwrap(sym)

def node(sym):
    "The syntax tree of the definition of `sym`, or None"
    try: return ast.parse(dedent(inspect.getsource(sym))).body[0]
    except (OSError, TypeError, SyntaxError): return None

def arguments(fn):
    "{name: text as written} of the arguments of the function node `fn`, then `'return'`"
    a = fn.args
    defaults = [None]*(len(a.posonlyargs+a.args)-len(a.defaults))+a.defaults
    show = lambda o, d=None, star='': star+o.arg+(f': {ast.unparse(o.annotation)}' if o.annotation else '')+(f' = {ast.unparse(d)}' if d else '')
    res = {o.arg: show(o, d) for o,d in zip(a.posonlyargs+a.args, defaults) if o.arg not in ('self', 'cls')}
    if a.vararg: res[a.vararg.arg] = show(a.vararg, star='*')
    res |= {o.arg: show(o, d) for o,d in zip(a.kwonlyargs, a.kw_defaults)}
    if a.kwarg: res[a.kwarg.arg] = show(a.kwarg, star='**')
    return res | ({'return': f'→ {ast.unparse(fn.returns)}'} if fn.returns else {})

def names(args): return ', '.join(v.split(':')[0].split(' = ')[0] for k,v in args.items() if k!='return')

def comments(sym):
    "{argument: its docment}"
    try: return {k: ' '.join(v.split()) for k,v in docments(sym, args_kwargs=True).items() if v}
    except Exception: return {} # an inherited or generated __init__ has no source to read

def rows(args, docs): return [(f'`{v}`', docs.get(k, '')) for k,v in args.items()]

def class_parts(sym, nd):
    "Heading and rows of a class: fields or arguments, then the methods of its body"
    own = {o.name: o for o in nd.body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef))}
    fields = {o.target.id: ast.unparse(o.target)+f': {ast.unparse(o.annotation)}'+(f' = {ast.unparse(o.value)}' if o.value else '')
              for o in nd.body if isinstance(o, ast.AnnAssign)}
    args = arguments(own['__init__']) if '__init__' in own else fields
    head = f'class {nd.name}({names(args)})' if args else f"class {nd.name}({', '.join(map(ast.unparse, nd.bases))})"
    methods = [(f'`.{k}({names(arguments(o))})`', (ast.get_docstring(o) or '').split('\n')[0]) for k,o in own.items() if k[0]!='_']
    docs = comments(sym) if '__init__' in own or is_dataclass(sym) else {}
    return head, rows({k: v for k,v in args.items() if k!='return'}, docs)+[m for m in methods if m[1]]

def api_md(sym, name):
    "The definition `sym` as markdown"
    sym, nd = plain(sym), node(plain(sym))
    if isinstance(nd, ast.ClassDef): head, rs = class_parts(sym, nd)
    elif isinstance(nd, (ast.FunctionDef, ast.AsyncFunctionDef)):
        args = arguments(nd)
        head, rs = f'def {name}({names(args)})', rows(args, comments(sym))
    else: head, rs = name, []
    res = [f'### `{head}` {{ #{name.lower()} .api data-toc-label="{name}" }}', inspect.cleandoc(getattr(sym, '__doc__', '') or '')]
    if any(m for _,m in rs): res.append('<div class="api" markdown>\n\n| | |\n|---|---|\n'+'\n'.join(f'| {a} | {m} |' for a,m in rs)+'\n\n</div>')
    return '\n\n'.join(filter(None, res))

def constants(cell):
    "Does an exported cell only assign public names? Such a cell is shown as it is"
    tree = cell.parsed_() or []
    return bool(tree) and all(isinstance(o, (ast.Assign, ast.AnnAssign)) for o in tree) and not ast.unparse(tree[0]).startswith('_')

class ShowDocs(Processor):
    "In nbdev's place: fill the `show_doc` cells from the exported module without running the notebook, drop the exported source"
    def begin(self):
        page = re.search(r'^output-file: *(\S+)\.html', self.nb.cells[0].source, re.M)
        self.mod = page and f"{get_config().lib_name}.{page[1]}"
        self.lookup = NbdevLookup()
        self.forwards()
    def forwards(self):
        "nbdev puts the definitions of one cell in reverse"
        for is_doc, run in groupby(list(enumerate(self.nb.cells)), lambda o: getattr(o[1], 'has_sd', False)):
            if is_doc:
                ids, cells = zip(*run)
                for i,c in zip(ids, reversed(cells)): self.nb.cells[i] = c
    def cell(self, cell):
        d = set(cell.directives_ or {})
        if d & {'hide', 'exporti', 'default_exp'} or 'export' in d and not constants(cell):
            del cell['source']
            return
        m = re.search(r'^show_doc\(([\w.]+)\)', cell.source, re.M) if cell.cell_type=='code' else None
        if not m: return
        sym = reduce(getattr, m[1].split('.'), import_module(self.mod))
        cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': self.lookup.linkify(api_md(sym, m[1]))})]
