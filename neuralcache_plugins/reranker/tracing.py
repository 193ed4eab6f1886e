"""Which trace a ranking belongs to, where the process traces with OpenTelemetry (as Langfuse and Phoenix do)."""

from __future__ import annotations

import sys


def current_span() -> dict[str, str]:
    """Return ``trace_id`` and ``span_id`` of OpenTelemetry's current span, in the hexadecimal form that backends show.

    Empty outside a span, and where nothing has imported OpenTelemetry; it is never imported from here. About 1 us.
    """
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None:
        return {}
    span = opentelemetry.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
