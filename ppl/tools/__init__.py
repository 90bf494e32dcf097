"""What programs act with: tools for `ppl.call`, and tool calls as chat models write them."""

from ppl.tools.calls import ToolCall, format_of, read_calls, tool_calls
from ppl.tools.python import Python

__all__ = ["Python", "ToolCall", "format_of", "read_calls", "tool_calls"]
