"""nanograd_llm: automatic differentiation of tensors, and language models built on it, in NumPy.

    import nanograd_llm as ng

    model = ng.GPT(ng.GPTConfig.preset("nano"), seed=0)
    loss = model.loss(tokens, targets)      # ids (B, T) -> Tensor (), the mean over the targets
    loss.backward()
    model.wte.grad                          # an array, of the parameter's shape and dtype

Each name is loaded when it is first used (PEP 562; Scientific Python's SPEC 1), so this import itself is fast.
To read the code, take the packages in this order, since each uses only those before it: backend, autograd, ops, nn,
models; files, text; gradcheck, see, training, inference, pretrained; tasks; runs; bench, cli.
"""

from nanograd_llm.backend.lazy import lazily

TYPE_CHECKING = False  # type checkers treat it as True; importing typing would take longer than the rest of this file
if TYPE_CHECKING:
    from nanograd_llm import gradcheck, inference, nn, ops, runs, tasks, text, training
    from nanograd_llm.autograd.modes import checked, higher_order, no_grad
    from nanograd_llm.autograd.op import keep, op
    from nanograd_llm.autograd.tensor import Parameter, Tensor, grad, hessian, hvp, jacobian, value_and_grad
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.errors import NanogradError
    from nanograd_llm.models import BERT, GPT, BERTConfig, EncoderDecoder, EncoderDecoderConfig, GPTConfig
    from nanograd_llm.pretrained import load_bert, load_gpt2, load_lora, save_bert, save_gpt2, save_lora
    from nanograd_llm.runs.opening import open_model
    from nanograd_llm.see.tracing import trace

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "autograd.modes": "checked higher_order no_grad",
        "ops autograd.op": "keep op",
        "ops autograd.tensor": "Parameter Tensor grad hessian hvp jacobian value_and_grad",
        "backend.arrays": "use_device",
        "errors": "NanogradError",
        "models.bert": "BERT BERTConfig",
        "models.encoder_decoder": "EncoderDecoder EncoderDecoderConfig",
        "models.gpt": "GPT GPTConfig",
        "pretrained": "load_bert load_gpt2 load_lora save_bert save_gpt2 save_lora",
        "runs.opening": "open_model",
        "see.tracing": "trace",
        **dict.fromkeys(("gradcheck", "inference", "nn", "ops", "runs", "tasks", "text", "training"), ""),
    },
    {  # PyTorch's names
        **{"tensor": "ng.Tensor(...)", "cat": "ng.ops.concatenate"},
        **dict.fromkeys(("zeros", "ones", "randn", "arange"), "ng.Tensor of an array of NumPy's function"),
        **{"optim": "ng.training", "save": "ng.save_gpt2 or ng.save_bert"},
    },
)
