"""The synthetic tasks, each with the settings of its paper: algorithms, recall, long distances.

    transformer-jax train    --config=configs/generated.py:mqar --workdir=runs/mqar
    transformer-jax train    --config=configs/generated.py:copy,decoder_only --workdir=runs/copy
    transformer-jax evaluate --workdir=runs/copy --lengths=50,62,82

The part before the comma is a task, or a spec of one: "mqar(length=128, pairs=8)". The part behind
it is the model's kind where the task leaves a choice. `docs/reference/tasks.md` lists tasks,
options and sources.
"""

from transformer_jax import spec
from transformer_jax.config import default_config
from transformer_jax.data.tasks.synthetic import SYNTHETIC


def get_config(arg='copy'):
    """`arg`: a synthetic task, then optionally the model's kind."""
    text, separator, kind = arg.rpartition(',') if not arg.endswith(')') else (arg, '', '')
    text, kind = (text, kind) if separator else (arg, '')
    task = spec.parse(text, SYNTHETIC, 'data.task')
    source, target = (
        max(sides) for sides in zip(task.longest('train'), task.longest('validation'), strict=True)
    )
    config = default_config()
    config.data.task = text
    config.data.vocab_size = 4 + len(task.symbols())
    own = 'encoder_decoder' if task.translates else 'decoder_only'
    config.model.kind = kind or ('classifier' if task.predicts_class else own)
    longest = source + target if config.model.kind == 'decoder_only' else max(source, target)
    config.data.batching = f'buckets(lengths=({longest},))'

    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.d_model = 64
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.position = 'rope'
    config.model.norm_placement = 'pre'
    config.model.ffn = 'gelu'
    config.model.embedding_scale = 'none'
    config.model.dropout = 0.0

    config.train.steps = 3000
    config.train.batch_tokens = 64 * longest
    config.train.label_smoothing = 0.0
    config.optim.optimizer = 'adam(b1=0.9, b2=0.98, eps=1e-8)'
    config.optim.schedule = 'cosine(warmup=200)'
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.clip = 1.0
    config.evaluate.every = 500
    config.evaluate.batch_tokens = 256 * longest
    config.evaluate.best_metric = 'accuracy' if task.predicts_class else 'exact_match'
    config.checkpoint.every = 500
    config.checkpoint.average = 1
    config.decode.method = 'greedy'
    config.decode.max_extra_tokens = target
    return config
