"""See backprop happen: record a pass, step through it, open a fused op, move a number, export a script or a page.

Read `record` and `tracing`, then what shows a record: `stepper`, `page`, `script`, `replay`, `look`.
"""

from nanograd_llm.backend.lazy import lazily

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nanograd_llm.see.record import Call, Record, Use, Value
    from nanograd_llm.see.tracing import Trace, trace

__getattr__, __dir__, __all__ = lazily(__name__, {"record": "Call Record Use Value", "tracing": "Trace trace"})
