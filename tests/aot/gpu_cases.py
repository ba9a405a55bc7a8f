"""What is compiled for NVIDIA GPUs that are not here; names and files as `gpu/NAME`."""

from aot.cases import MESHES, Case

DECODER = {'model.kind': 'decoder_only'}
ONE, HOST = 'h200:1', 'h200:8'


def _gpu_cases() -> dict[str, Case]:
    cases = {
        f'engine-{engine}': Case(DECODER | {'model.engine': engine}, topology=ONE)
        for engine in ('dense', 'chunked', 'cudnn')
    }
    window = {'model.attention': 'softmax(mask=window(32))'}
    packed = {'model.engine': 'cudnn', 'data.batching': 'packed(length=128)'}
    cases |= {
        'engine-cudnn-packed': Case(DECODER | packed, topology=ONE),
        'engine-cudnn-window': Case(DECODER | window | {'model.engine': 'cudnn'}, topology=ONE),
        'encoder-decoder': Case({'model.kind': 'encoder_decoder'}, topology=ONE),
        'float32': Case(DECODER | {'model.dtype': 'float32'}, topology=ONE),
        'moe': Case(DECODER | {'model.ffn': 'moe(experts=4, k=2, expert=swiglu)'}, topology=ONE),
        'evaluate': Case(DECODER, 'evaluate', ONE),
        'decode-growing': Case(DECODER | {'decode.method': 'greedy'}, 'decode', ONE),
        'seeds': Case(DECODER | {'train.num_seeds': 4}, topology='h200:4'),
        'host-h200': Case(DECODER, topology=HOST),
        'host-h100': Case(DECODER, topology='h100:8'),
        'host-a100': Case(DECODER, topology='a100:8'),
        'two-hosts': Case(
            DECODER | {'parallel.mesh.data': 2, 'parallel.mesh.fsdp': 8}, topology='h200:16'
        ),
    }
    for name, mesh in MESHES.items():
        sizes = {f'parallel.mesh.{axis}': size for axis, size in mesh.items()}
        overrides = DECODER | sizes | {'model.num_heads': 4}
        cases[f'mesh-{name}'] = Case(overrides, topology='h200:4')
    dense = {'parallel.mesh.data': 1, 'parallel.mesh.fsdp': 4, 'model.engine': 'dense'}
    cases['mesh-fsdp-dense'] = Case(DECODER | dense, topology='h100:4')
    return {f'gpu/{name}': case for name, case in cases.items()}


GPU_CASES = _gpu_cases()
