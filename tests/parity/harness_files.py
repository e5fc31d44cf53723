"Files of 50 items each in the formats that GSM8K, BoolQ and SQuAD are published in, on nothing in particular"
import json, random
from pathlib import Path

NAMES = 'Anna Ben Carl Dora Emil Fay Gus Hana Ivo June'.split()
THINGS = 'pens cups keys maps nuts pins'.split()
COLOURS = 'red blue green black white'.split()
PLACES = 'box bag car house garden'.split()


def sums(g, n):
    "GSM8K: a derivation, then #### and the number"
    for i in range(n):
        name,thing,a,b = g.choice(NAMES), g.choice(THINGS), g.randint(2, 9), g.randint(2, 9)
        number = f'{a*1000+b:,}' if i%10==9 else a+b # thousands are written with commas
        what = f'{a} thousand and {b}' if i%10==9 else f'{a} {thing} and gets {b} more'
        yield dict(question=f'{name} has {what}. How many {thing} are that?',
                   answer=f'{a}+{b}=<<{a}+{b}={a+b}>>{a+b}\n#### {number}')


def passages(g, n):
    "BoolQ: whether something is said"
    for i in range(n):
        name,colour,other,place = g.choice(NAMES), *g.sample(COLOURS, 2), g.choice(PLACES)
        asked = colour if (yes := g.random() < .6) else other
        before = range(200 if i==7 else g.randint(0, 3)) # one is longer than a window
        long = ' '.join(f'The {g.choice(PLACES)} is {g.choice(COLOURS)}.' for _ in before)
        yield dict(question=f'is the {place} of {name} {asked}', title=name, answer=yes,
                   passage=f'{long} The {place} of {name} is {colour}.'.strip())


def articles(g, n):
    "SQuAD 2.0: several answers, one, or none"
    for i in range(n):
        name,colour,place,other = g.choice(NAMES), g.choice(COLOURS), *g.sample(PLACES, 2)
        context = f'The {place} of {name} is {colour}. ' + f'It is very {g.choice(COLOURS)}. '*(150 if i==11 else 1)
        said = [colour, f'the {colour}', f'{colour}.'][:g.randint(1, 3)]
        there = g.random() < .85
        answers = [dict(text=t, answer_start=max(0, context.find(t))) for t in said] if there else []
        qa = dict(id=f'q{i}', question=f'Which colour is the {place if there else other} of {name}?', answers=answers,
                  is_impossible=not there)
        yield dict(title=f'{name} {i}', paragraphs=[dict(context=context, qas=[qa])])


def spoken(g, n):
    "Answers as models write them, and what would be right: for SQuAD (texts), for GSM8K (an answer)"
    words = 'The a AN the, red Red! blue-ish blue , . café 10,5 no'.split()
    for _ in range(n):
        golds = [' '.join(g.choices(words, k=g.randint(1, 3))) for _ in range(g.randint(0, 3))]
        text = g.choice([*golds, ''.join(g.choices([*words, ' ', ' '], k=g.randint(0, 5))), ' unanswerable', ''])
        number = g.choice(['7', '-7', '1,234', '0.5'])
        signs = ['####', '#### ', '$', ' ', '.', ',', 'is', '7', '12', '\n', '#### 7']
        parts = g.choices([number, f'#### {number}', *signs], k=6)
        yield dict(text=text, golds=golds, worked=''.join(parts), answer=f'So.\n#### {number}')


def lines(path, items): path.write_text(''.join(json.dumps(d)+'\n' for d in items), encoding='utf-8')


def write_files(folder, seed=0, n=50):
    "gsm8k.jsonl, gsm8k_train.jsonl, boolq.jsonl, squadv2.json"
    folder,g = Path(folder), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines(folder/'gsm8k.jsonl', sums(g, n))
    lines(folder/'gsm8k_train.jsonl', sums(g, n))
    lines(folder/'boolq.jsonl', passages(g, n))
    whole = dict(version='v2.0', data=list(articles(g, n)))
    (folder/'squadv2.json').write_text(json.dumps(whole), encoding='utf-8')
    return folder
