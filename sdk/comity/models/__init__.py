"""Models behind an agent: servers with the OpenAI chat/completions API, such as vLLM, SGLang and llama.cpp.

    backend = OpenAiBackend("http://127.0.0.1:8000/v1", "qwen3-8b")

    @agent.skill("answer")
    async def answer(work: Work) -> dict[str, object]:
        said = await backend.complete(work.input["state"]["question"], schema=ANSWER, timeout_s=work.remaining_s)
        return {"state": said.value, "usage": said.usage.report()}

`complete` is for async skills, `complete_sync` for the others; both share one window, which learns how many calls the
server takes at a time. It takes the extra `models` (httpx). `comity.testing.FakeModel` is a server for tests.
"""

from __future__ import annotations

from comity.models.backend import BackendLimits, OpenAiBackend, Window
from comity.models.reply import Completion, Prices, Usage

__all__ = ["BackendLimits", "Completion", "OpenAiBackend", "Prices", "Usage", "Window"]
