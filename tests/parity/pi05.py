"""Record what lerobot's own pi0.5 and pi0 do at toy size: `pi05.safetensors` beside this file, which the tests read

    python3.12 -m venv ENV
    ENV/bin/pip install 'lerobot[pi]==0.6.1' 'transformers==5.5.4'
    ENV/bin/python tests/parity/pi05.py [FILE]

An environment of its own: lerobot from 0.5 on needs Python 3.12. Nothing of steerlens is imported. Weights are not
stored: both sides draw each tensor from a generator that its name seeds (`drawn`).
"""
import hashlib, json, sys, tempfile, zlib
from importlib.metadata import version
from pathlib import Path
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor.normalize_processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from lerobot.lerobot_types import TransitionKey

SIZES = dict(vocab=61, depth=3, width=32, mlp=48, expert_width=24, expert_mlp=40, heads=8, kv_heads=1, head_dim=8,
             chunk=5, action_dim=6, state_dim=6, tokens=12, image=28, patch=14, vision_width=16, vision_mlp=24,
             vision_layers=2, vision_heads=2)
CAMERAS = ['observation.images.base', 'observation.images.wrist', 'observation.images.empty']


def drawn(name, shape):
    "The values of the tensor of this name: the same on every machine"
    fan_in = int(np.prod(shape[1:])) if len(shape)>1 else 11
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype('f4')/fan_in**.5


def shrink(config):
    "Sizes that the source has as constants"
    S = SIZES
    text = getattr(config, 'text_config', config)
    text.vocab_size = S['vocab']
    if text is not config:
        config.image_token_id = S['vocab']
        v = config.vision_config
        v.hidden_size,v.intermediate_size,v.num_hidden_layers = S['vision_width'], S['vision_mlp'], S['vision_layers']
        v.num_attention_heads,v.patch_size,v.projection_dim = S['vision_heads'], S['patch'], S['width']
    return config


def small(module):
    "The source's module, building small"
    S = SIZES
    def sizes(name):
        w,m = (S['width'], S['mlp']) if name=='gemma_2b' else (S['expert_width'], S['expert_mlp'])
        heads = dict(num_heads=8, num_kv_heads=1, head_dim=S['head_dim'])
        return module.GemmaConfig(width=w, depth=S['depth'], mlp_dim=m, **heads)
    module.get_gemma_config = sizes
    for name in ('PaliGemmaForConditionalGenerationWithPiGemma', 'PiGemmaForCausalLM'):
        def build(config, cls=getattr(module, name)): return cls(shrink(config))
        setattr(module, name, build)


def policy(module, cls, Config):
    "One of its policies, with weights by name"
    small(module)
    S = SIZES
    config = Config(device='cpu', dtype='float32', chunk_size=S['chunk'], n_action_steps=S['chunk'],
                    image_resolution=(S['image'],)*2, max_action_dim=S['action_dim'], max_state_dim=S['state_dim'],
                    tokenizer_max_length=S['tokens'])
    config.input_features = {c: PolicyFeature(FeatureType.VISUAL, (3, 40, 20)) for c in CAMERAS}
    config.input_features['observation.state'] = PolicyFeature(FeatureType.STATE, (4,))
    config.output_features = {'action': PolicyFeature(FeatureType.ACTION, (4,))}
    p = cls(config).eval()
    for name,x in p.model.state_dict().items():
        if name.endswith('lm_head.weight'): continue # tied
        x.copy_(torch.from_numpy(drawn(name, tuple(x.shape))))
    return p


def batch():
    "Two rows, of which the first is padded; the third camera is missing"
    r = np.random.RandomState(0)
    images = {c: torch.from_numpy(r.randint(0, 256, (2, 3, 40, 20)).astype('f4')/255) for c in CAMERAS[:2]}
    tokens = torch.from_numpy(r.randint(1, SIZES['vocab'], (2, SIZES['tokens'])))
    mask = torch.arange(SIZES['tokens'])<torch.tensor([[7], [SIZES['tokens']]])
    noise = torch.from_numpy(r.standard_normal((2, SIZES['chunk'], SIZES['action_dim'])).astype('f4'))
    state = torch.from_numpy(r.standard_normal((2, SIZES['state_dim'])).astype('f4'))
    return images, tokens, mask, noise, state


def taped(module, found, name, what=lambda args, out: out):
    "Keep what a module gives, call by call"
    def keep(m, args, kwargs, out):
        x = what(args, out)
        x = x[0] if isinstance(x, tuple) else getattr(x, 'pooler_output', x)
        found.setdefault(name, []).append(x.detach().clone())
    return module.register_forward_hook(keep, with_kwargs=True)


def run(p, state=None):
    "Everything on the way from a batch to actions"
    images,tokens,mask,noise,_ = batch()
    pixels,pixel_masks = p._preprocess_images(images)
    pw,found = p.model.paligemma_with_expert, {}
    hooks = [taped(pw.paligemma.model.multi_modal_projector, found, 'image')]
    for i,layer in enumerate(pw.paligemma.model.language_model.layers): hooks.append(taped(layer, found, f'lm.{i}'))
    for i,layer in enumerate(pw.gemma_expert.model.layers): hooks.append(taped(layer, found, f'expert.{i}'))
    hooks.append(taped(p.model.action_out_proj, found, 'velocity'))
    if state is None:
        hooks.append(taped(pw.gemma_expert.model.norm.dense, found, 'adarms', lambda args, out: args[0]))
    given = (pixels, pixel_masks, tokens, mask, *([] if state is None else [state]))
    actions = p.model.sample_actions(*given, noise=noise)
    embs,_,_ = p.model.embed_prefix(pixels, pixel_masks, tokens, mask)
    for h in hooks: h.remove()
    found = {k: torch.stack(v) for k,v in found.items()}
    found['image'] = found['image'][:len(CAMERAS)]
    return found | dict(actions=actions, pixels=torch.stack(pixels), prefix=embs)


def filed(p):
    "The names and shapes of the file that it saves"
    with tempfile.TemporaryDirectory() as folder:
        p.save_pretrained(folder)
        config = json.loads((Path(folder)/'config.json').read_text())
        with safe_open(f'{folder}/model.safetensors', 'pt') as f:
            return {k: f.get_slice(k).get_shape() for k in f.keys()}, config


def full(cls, Config):
    "How many tensors the full policy has in bfloat16, and the hash of their names, shapes and types"
    with torch.device('meta'): state = cls(Config(device='cpu', dtype='bfloat16')).state_dict()
    lines = sorted(f'{k} {list(v.shape)} {v.dtype}' for k,v in state.items())
    return dict(n=len(lines), sha256=hashlib.sha256('\n'.join(lines).encode()).hexdigest())


def scaled():
    "States and actions through its normaliser, and a prompt"
    r = np.random.RandomState(1)
    x = torch.from_numpy(r.standard_normal((2, 4)).astype('f4'))
    stats = dict(mean=r.standard_normal(4), std=r.random_sample(4), min=-r.random_sample(4)-1, max=r.random_sample(4)+1,
                 q01=-r.random_sample(4), q99=r.random_sample(4))
    stats['q99'][3] = stats['q01'][3] # a dimension that never moves
    stats = {k: v.astype('f4') for k,v in stats.items()}
    found = {f'stats.{k}': torch.from_numpy(v) for k,v in stats.items()} | {'scaled.raw': x}
    feature = {'action': PolicyFeature(FeatureType.ACTION, (4,))}
    for mode in ('MEAN_STD', 'QUANTILES', 'MIN_MAX'):
        how = dict(features=feature, norm_map={FeatureType.ACTION: NormalizationMode[mode]}, stats={'action': stats})
        found[f'scaled.{mode}'] = NormalizerProcessorStep(**how)._normalize_action(x, inverse=False)
        found[f'unscaled.{mode}'] = UnnormalizerProcessorStep(**how)._normalize_action(x, inverse=True)
    state = torch.tensor([[-1.2, -1., -.995, 0.], [.4, .999, 1., 7.]])
    said = Pi05PrepareStateTokenizerProcessorStep()({
        TransitionKey.OBSERVATION: {'observation.state': state},
        TransitionKey.COMPLEMENTARY_DATA: {'task': ['pick_up the\nbowl ', 'close it']}})
    return found | {'prompt.state': state}, said[TransitionKey.COMPLEMENTARY_DATA]['task']


def main():
    whole = dict(full5=full(modeling_pi05.PI05Pytorch, PI05Config), full0=full(modeling_pi0.PI0Pytorch, PI0Config))
    p5 = policy(modeling_pi05, modeling_pi05.PI05Policy, PI05Config)
    p0 = policy(modeling_pi0, modeling_pi0.PI0Policy, PI0Config)
    images,tokens,mask,noise,state = batch()
    scales,prompts = scaled()
    tensors = {f'pi05.{k}': v for k,v in run(p5).items()}
    tensors |= {f'pi0.{k}': v for k,v in run(p0, state).items() if k in ('actions', 'velocity', 'expert.1')} | scales
    tensors |= {'in.images': torch.stack([*images.values()]), 'in.tokens': tokens, 'in.mask': mask, 'in.noise': noise,
                'in.state': state}
    (names5,config5),(names0,config0) = filed(p5), filed(p0)
    says = dict(sizes=SIZES, prompts=prompts, names5=names5, names0=names0, config5=config5, config0=config0, **whole,
                made_by={k: version(k) for k in ('lerobot', 'transformers', 'torch')})
    out = Path(sys.argv[1] if len(sys.argv)>1 else Path(__file__).with_suffix('.safetensors'))
    save_file({k: v.contiguous() for k,v in tensors.items()}, out, {k: json.dumps(v) for k,v in says.items()})
    print(out, out.stat().st_size, says['made_by'])


if __name__=='__main__': main()
